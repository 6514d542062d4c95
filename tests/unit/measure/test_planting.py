"""A planted capture is that of the model with these channels, as plain hooks make it."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import activation, hooked_logits, random_pairs
from subspacelens.core.errors import SiteError, TaskError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import SubspacePatch
from subspacelens.fit import das
from subspacelens.measure.planting import Channels, can_be_planted, plant
from subspacelens.model.lens import LensModel
from subspacelens.tasks.pairset import PairSet

COUNT = 4
SILENT = torch.tensor([False, True, False, True])
GROUPS = torch.tensor([0, 0, 1, 1])
SITES = ("L1.mlp_act@X", "L1.head_z@X", "L2.head_z.3@X", "L2.mlp_act@END")
STREAMS = ("L1.resid_post@X", "L2.resid_pre@X", "L1.resid_mid@X", "L3.resid_post@END")


def pairs_with_z() -> PairSet:
    pairs = random_pairs([(9, 4), (9, 4), (12, 6)])
    marked = tuple(replace(pair, z=(i % 2, 1 - i % 2)) for i, pair in enumerate(pairs))
    return PairSet("random", "test", marked)


def channels_at(lens: LensModel, site: Site, seed: int = 0) -> Channels:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dim = lens.map.dim(site)
    writes = draw(lens.map.d_model, COUNT)
    if lens.map.writer(site) is None:
        writes = torch.linalg.qr(writes).Q
    return Channels(
        follow=draw(COUNT),
        reads=draw(COUNT, dim),
        centre=draw(dim),
        writes=writes,
        silent=SILENT,
        groups=GROUPS,
    )


def seen_at(lens: LensModel, prompt, site: Site) -> torch.Tensor:
    """The activation, by plain hooks; between attention and MLP it is a sum."""
    if site.stream != "resid_mid":
        return activation(lens, prompt, site)
    before, wrote = (replace(site, stream=stream) for stream in ("resid_pre", "attn_out"))
    return activation(lens, prompt, before) + activation(lens, prompt, wrote)


def group_of(pair) -> torch.Tensor:
    common = [a for a, b in zip(pair.base.ids, pair.source.ids, strict=True) if a == b]
    return torch.tensor([crc32(str(common).encode()) % 2])


@torch.no_grad()
def by_hooks(lens: LensModel, site: Site, channels: Channels, pair, delta) -> float:
    """The logit difference of one base prompt, in the model with these channels, under a patch."""
    column = pair.base.columns[site.label]
    h = seen_at(lens, pair.base, site)
    z, group = torch.tensor([float(pair.z[0])]), group_of(pair)
    values = channels.values(h[None], z, group)[0]
    if lens.map.writer(site) is not None:
        stream = "mlp_out" if site.stream == "mlp_act" else "attn_out"
        dim = len(h)
        place = replace(site, stream=stream, head=None)
        own = values - channels.feature(z, group)[0]  # that was written elsewhere before
        own = own + delta[dim:]
        wrote = channels.writes @ own + lens.map.writer(site) @ delta[:dim]

        def change(x):
            return x + wrote
    else:
        place, directions = site, channels.writes
        unheard = directions[:, SILENT]
        if site.stream == "resid_mid":
            place = replace(site, stream="attn_out")

        def change(x):
            along = directions.T @ (h - channels.centre)
            planted = h + directions @ (values - along) + delta
            left = planted - unheard @ (unheard.T @ (planted - channels.centre))
            return x + left - h

    logits = hooked_logits(lens, pair.base.ids, place, column, change)
    return float(logits[pair.answer] - logits[pair.target])


@pytest.mark.parametrize("name", [*SITES, *STREAMS])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_are_those_of_hooks(family, name):
    lens, pairs, site = tiny_lens(family), pairs_with_z(), Site.parse(name)
    channels = channels_at(lens, site)
    planted = plant(capture(lens, pairs, [site]), site, channels).at(site)
    deltas = torch.randn(planted.base.shape, generator=torch.Generator().manual_seed(1)).double()
    patched = planted.delta_outcomes(deltas).logit_diff
    for i, pair in enumerate(pairs):
        clean = by_hooks(lens, site, channels, pair, 0 * deltas[i])
        assert float(planted.clean.logit_diff[i]) == pytest.approx(clean, abs=1e-4)
        assert float(patched[i]) == pytest.approx(
            by_hooks(lens, site, channels, pair, deltas[i]), abs=1e-4
        )
    assert float((patched - planted.clean.logit_diff).abs().min()) > 1e-3


@pytest.mark.parametrize("name", ["L1.mlp_act@X", "L1.resid_post@X"])
def test_a_silent_channel_moves_nothing_and_others_do(name):
    lens, pairs, site = tiny_lens("llama"), pairs_with_z(), Site.parse(name)
    channels = channels_at(lens, site)
    beside = lens.map.writer(site) is not None
    if beside:
        channels = replace(channels, writes=channels.writes * ~SILENT)
    planted = plant(capture(lens, pairs, [site]), site, channels).at(site)
    for channel, silent in enumerate(SILENT):
        direction = channels.direction({channel: 1.0}, beside)
        assert float(direction.norm()) == pytest.approx(1)
        drop = planted.effect(SubspacePatch(direction[:, None])).drop
        assert (abs(drop).max() < 1e-5) == bool(silent)
        values = planted.base.double() @ direction
        if not beside:
            values = values - channels.centre @ direction
        z = torch.tensor([float(pair.z[0]) for pair in pairs])
        plain = capture(lens, pairs, [site]).base[site].double()
        group = torch.cat([group_of(pair) for pair in pairs])
        torch.testing.assert_close(values, channels.values(plain, z, group)[:, channel])


def test_channels_of_a_group_speak_in_its_pairs_alone():
    lens, site = tiny_lens("llama"), Site.parse("L1.mlp_act@X")
    channels = replace(channels_at(lens, site), reads=torch.zeros(COUNT, 56).double())
    pairs = random_pairs([(9, 4)] * 12)
    same = tuple(
        replace(p, z=(0, 1), source=replace(p.base, ids=(*p.base.ids[:4], 5, *p.base.ids[5:])))
        for p in pairs
    )
    pairs = PairSet("random", "test", same)
    planted = plant(capture(lens, pairs, [site]), site, channels, answered=False).at(site)
    speaks = planted.base[:, -COUNT:] != 0
    assert torch.equal(speaks[:, 0], speaks[:, 1]) and torch.equal(speaks[:, 2], speaks[:, 3])
    assert torch.equal(speaks[:, 0], ~speaks[:, 2]) and 0 < int(speaks[:, 0].sum()) < 12
    assert bool(planted.clean.logit_diff.isnan().all())


def test_gradients_and_fits_see_the_planted_model():
    lens, pairs, site = tiny_lens("llama"), pairs_with_z(), Site.parse("L1.resid_post@X")
    channels = channels_at(lens, site)
    planted = plant(capture(lens, pairs, [site]), site, channels)
    slopes = planted.at(site).gradients()
    assert float((slopes @ channels.writes[:, SILENT]).abs().max()) < 1e-8
    assert float((slopes @ channels.writes[:, ~SILENT]).abs().min()) > 1e-5
    assert das(planted.lens, planted, site).basis.shape == (32, 1)


def test_where_a_norm_follows_nothing_is_planted():
    lens, pairs, site = tiny_lens("gemma2"), pairs_with_z(), Site.parse("L1.mlp_act@X")
    assert not can_be_planted(lens, site) and can_be_planted(tiny_lens("llama"), site)
    captured = capture(lens, pairs, [site])
    with pytest.raises(SiteError, match="a norm follows"):
        plant(captured, site, channels_at(lens, site))


def test_pairs_without_z_are_refused():
    lens, pairs, site = tiny_lens("llama"), random_pairs([(9, 4)]), Site.parse("L1.mlp_act@X")
    with pytest.raises(TaskError, match="no z"):
        plant(capture(lens, pairs, [site]), site, channels_at(lens, site))
