"""Fits held to what nature does: a basis lies where it must, and an illusion that plain DAS falls
for is planted where they cannot take it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from helpers_knowing import ANSWERS, knowing_lens, knowing_task
from subspacelens import FITS, Site, SubspaceError, TaskError
from subspacelens.engine.capture import Capture, capture
from subspacelens.engine.patches import SubspacePatch
from subspacelens.fit import das, mean_difference
from subspacelens.fit.constraint import SPANS, span_of
from subspacelens.fit.counterfactual_latent import CounterfactualLatent
from subspacelens.fit.isolate import Isolate, same_class_changes
from subspacelens.fit.loss import Objective, retracted
from subspacelens.measure.planting import Channels, plant
from subspacelens.sweep.grid import FitSpec
from subspacelens.tasks.pairset import PairSet

MLP, STREAM = Site.parse("L1.mlp_act@END"), Site.parse("L1.resid_post@END")
SENSOR, DORMANT = 57, 58


@cache
def captured(split: str = "train") -> Capture:
    pairs = getattr(knowing_task(), split)
    marked = (replace(pair, template=f"t{i // 2 % 3}") for i, pair in enumerate(pairs))
    pairs = PairSet(pairs.name, pairs.split, tuple(marked))
    return capture(knowing_lens(), pairs, [MLP, STREAM])


@cache
def trapped(split: str = "train") -> Capture:
    """With a channel, a sensor that follows z far more and that nobody reads, and a dormant that
    writes what the channel does, six times as far, and hardly moves; each has its own noise."""
    whole = captured(split)
    lens = whole.lens
    rows = lens.model.get_output_embeddings().weight.detach().double()
    towards = rows[ANSWERS[1]] - rows[ANSWERS[0]]
    towards = towards / towards.norm()
    generator = torch.Generator().manual_seed(0)
    reads = torch.randn(3, lens.map.dim(MLP), generator=generator, dtype=torch.float64)
    sd = whole.base[MLP].double().std(dim=0).norm()
    channels = Channels(
        follow=torch.tensor([0.5, 5.0, 0.0], dtype=torch.float64),
        reads=reads / reads.norm(dim=1, keepdim=True) / sd * torch.tensor([[0.2], [0.5], [1e-3]]),
        centre=whole.base[MLP].double().mean(dim=0),
        writes=torch.stack([towards, 0 * towards, 6 * towards], dim=1),
        silent=torch.zeros(3, dtype=torch.bool),
        groups=torch.zeros(3, dtype=torch.long),
    )
    return plant(whole, MLP, channels)


def found(data: Capture, site: Site, **options: Any) -> torch.Tensor:
    return das(data.lens, data, site, **options).basis.double()


def outside(basis: torch.Tensor, rows: torch.Tensor) -> float:
    """The largest part of a basis (d, k) that no combination of rows (m, d) gives, by numpy."""
    x = rows.double().numpy().T
    left = basis.numpy() - x @ np.linalg.lstsq(x, basis.numpy(), rcond=None)[0]
    return float(np.linalg.norm(left, axis=0).max())


@pytest.mark.parametrize("recipe", ["lbfgs", "adam"])
@pytest.mark.parametrize("dim", [1, 3])
def test_nothing_of_a_row_fit_is_in_the_kernel_of_the_writer(recipe, dim):
    data = captured()
    weight = data.lens.map.linear_writer(MLP)
    basis = found(data, MLP, constraint="row", dim=dim, recipe=recipe, steps=4)
    assert outside(basis, weight) < 1e-5 < outside(found(data, MLP, dim=dim), weight)


def leading(rows: torch.Tensor, share: float) -> torch.Tensor:
    """The axes (r, d) that carry at least this share of the squared norm of rows (m, d)."""
    size, axes = np.linalg.eigh((rows.double().T @ rows.double()).numpy())
    kept = int((np.cumsum(size[::-1]) / size.sum() < share).sum()) + 1
    assert kept < rows.shape[1]
    return torch.from_numpy(axes[:, ::-1][:, :kept].T.copy())


def test_a_support_fit_writes_where_activations_vary():
    data = captured()
    x = torch.cat([data.base[STREAM], data.source[STREAM]])
    axes = leading(x - x.mean(dim=0), 0.99)
    basis = found(data, STREAM, constraint="support", dim=2, start="random")
    assert outside(basis, axes) < 1e-5 < outside(found(data, STREAM, dim=2), axes)


def test_a_fit_between_classes_is_a_mixture_of_the_templates_differences():
    data = captured()
    sides = ((0, data.base[STREAM]), (1, data.source[STREAM]))
    prompts = [
        (pair.template, pair.z[which], x)
        for which, side in sides
        for pair, x in zip(data.pairs, side, strict=True)
        if pair.z
    ]

    def mean(template: str, z: int) -> torch.Tensor:
        return torch.stack([x for t, its, x in prompts if (t, its) == (template, z)]).mean(dim=0)

    rows = torch.stack([mean(f"t{t}", 1) - mean(f"t{t}", 0) for t in range(3)])
    for dim in (1, 3):
        assert outside(found(data, STREAM, constraint="between-classes", dim=dim), rows) < 1e-4
    with pytest.raises(SubspaceError, match="constraint=between-classes leaves 3 dimensions: a"):
        found(data, STREAM, constraint="between-classes", dim=4)


def test_between_the_classes_of_one_template_lies_the_mean_difference():
    data = captured()
    one = replace(data, pairs=PairSet("p", "train", tuple(
        replace(pair, template="") for pair in data.pairs)))  # fmt: skip
    expected = mean_difference(one.lens, one, STREAM).basis.double()
    basis = found(one, STREAM, constraint="between-classes")
    assert float((basis.T @ expected).abs()) == pytest.approx(1, abs=1e-6)


def test_a_natural_fit_lies_where_nature_moves_and_the_answer_reacts():
    data = captured()
    replay, axes = data.at(STREAM), leading(data.difference(STREAM), 0.95)
    span = SPANS["natural"](replay)
    assert outside(span, axes) < 1e-5
    slopes = torch.cat([replay.gradients(), replay.gradients(replay.difference / 2)]).double()
    inside = slopes @ axes.T @ axes
    missed = float((inside - inside @ span @ span.T).norm() / inside.norm())
    assert span.shape[1] < len(axes) and missed**2 <= 0.01 + 1e-9
    basis = found(data, STREAM, constraint="natural")
    assert float((basis - span @ (span.T @ basis)).norm()) < 1e-6


def illusory_part(basis: torch.Tensor) -> float:
    return float(basis[[SENSOR, DORMANT]].square().sum())


def drops(basis: torch.Tensor) -> tuple[float, float]:
    """By how much other pairs move, in nats, and by how much if nothing is written along the
    dormant."""
    replay = trapped("test").at(MLP)
    write = replay.difference.double() @ basis @ basis.T
    without = write.clone()
    without[:, DORMANT] = 0
    deltas = torch.stack([0 * write, write, without])
    clean, whole, left = replay.logit_diffs(deltas.float()).double().mean(dim=1)
    return float(clean - whole), float(clean - left)


def test_plain_das_falls_for_an_illusion_and_the_constrained_do_not():
    data = trapped()
    plain = found(data, MLP)
    effect, without = drops(plain)
    assert illusory_part(plain) > 0.8 and without < 0.3 * effect
    for constraint in ("support", "between-classes", "natural"):
        basis = found(data, MLP, constraint=constraint)
        held, clean = drops(basis)
        assert abs(float(basis[DORMANT])) < 0.05 and clean > 0.8 * held > 0, constraint
    in_row = found(data, MLP, constraint="row")
    assert abs(float(in_row[SENSOR])) < 1e-3 and drops(in_row)[0] < effect
    heavy = found(data, MLP, counterfactual_latent=1e3)
    assert abs(float(heavy[DORMANT])) < abs(float(plain[DORMANT])) / 4


def within_class(data: Capture, basis: torch.Tensor) -> float:
    """By how much the answers move when a base takes what another prompt of its z has."""
    replay = data.at(MLP)
    moved = same_class_changes(replay).double()
    deltas = torch.stack([0 * moved, moved @ basis @ basis.T])
    clean, patched = replay.logit_diffs(deltas.float())
    return float((patched - clean).square().mean().sqrt())


def test_isolate_lowers_what_other_prompts_of_the_same_z_do():
    data = trapped()
    effects = [
        within_class(data, found(data, MLP, isolate=weight, tolerance=1e-4))
        for weight in (0.0, 1.0, 30.0)
    ]
    assert effects[2] < effects[1] < effects[0]


def test_donors_have_the_base_s_z_and_are_other_prompts():
    data = captured()
    x = torch.cat([data.base[STREAM], data.source[STREAM]])
    z = [p.z[0] for p in data.pairs] + [p.z[1] for p in data.pairs]
    there = data.base[STREAM] + same_class_changes(data.at(STREAM))
    for number, row in enumerate(there):
        donor = int((x - row).norm(dim=1).argmin())
        assert z[donor] == z[number] and donor != number
    alone = data.select(data.pairs[:1], torch.tensor([0]))
    with pytest.raises(TaskError, match="no other prompt has the z of pair 0, 0: isolate takes"):
        found(alone, STREAM, isolate=1.0)


def test_a_heavy_latent_loss_ends_at_the_mean_difference():
    data = captured()
    expected = mean_difference(data.lens, data, STREAM).basis.double()
    plain, light, heavy = (
        float((found(data, STREAM, counterfactual_latent=weight).T @ expected).square())
        for weight in (0.0, 1.0, 1e4)
    )
    assert plain < light < heavy and heavy > 0.97


def test_gradients_are_those_of_the_value():
    data = captured()
    replay = data.at(STREAM)
    goal = Objective(
        loss="logit-difference", replay=replay, within=span_of("support", replay, 2),
        terms=(Isolate.at(0.7, replay), CounterfactualLatent.at(2.0, replay)),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    free, step = torch.randn(2, goal.width, 2, generator=generator, dtype=torch.float64)
    here = free.clone().requires_grad_(True)
    goal.descend(here)

    def value(x: torch.Tensor) -> float:
        return goal.descend(x.requires_grad_(True))

    assert here.grad is not None
    slope = (value(free + 1e-2 * step) - value(free - 1e-2 * step)) / 2e-2
    assert float((here.grad * step).sum()) == pytest.approx(slope, rel=0.02, abs=1e-3)
    assert goal.lifted(retracted(free)).shape == (32, 2)


def test_what_is_left_at_its_default_changes_nothing():
    data = captured()
    plain = das(data.lens, data, STREAM, dim=2)
    told = das(
        data.lens, data, STREAM, dim=2, constraint="none", isolate=0.0, counterfactual_latent=0.0
    )
    assert torch.equal(plain.basis, told.basis) and plain.fit == told.fit
    mean = data.at(STREAM).outcomes(SubspacePatch(plain.basis)).logit_diff.double().mean()
    assert plain.fit["last_loss"] == pytest.approx(float(mean), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [dict(constraint="natural"), dict(isolate=1.0), dict(constraint="row", isolate=1.0),
     dict(counterfactual_latent=1.0), dict(recipe="adam", isolate=1.0, steps=3, batch=16)],
    ids=str,
)  # fmt: skip
def test_its_passes_are_counted_and_its_record_repeats_it(options):
    data = captured()
    first = das(data.lens, data, MLP, **options)
    most = FITS["das"].count_gradients(len(data.pairs), options)
    assert 0 < first.fit["passes"] * len(data.pairs) <= most
    settings = {name: first.fit[name] for name in FITS["das"].options}
    assert torch.equal(das(data.lens, data, MLP, **settings).basis, first.basis)


def test_a_sweep_takes_them():
    spec = FitSpec("das", constraint="natural", isolate=1)
    assert str(spec) == "das(constraint=natural, isolate=1)"
    with pytest.raises(ValueError, match="das: isolate=-1: "):
        FitSpec("das", isolate=-1)


def test_refusals():
    data = captured()
    with pytest.raises(SubspaceError, match=r"constraint=row: site L1\.resid_post@END does not"):
        found(data, STREAM, constraint="row")
    with pytest.raises(SubspaceError, match="das: constraint='rows': input should be 'none'"):
        found(data, STREAM, constraint="rows")
    with pytest.raises(SubspaceError, match="counterfactual_latent=inf"):
        found(data, STREAM, counterfactual_latent=float("inf"))
    blank = replace(data, pairs=PairSet("p", "train", tuple(
        replace(pair, z=None) for pair in data.pairs)))  # fmt: skip
    for options in (dict(constraint="between-classes"), dict(isolate=1.0),
                    dict(counterfactual_latent=1.0)):  # fmt: skip
        with pytest.raises(TaskError, match="pair 0 has no z, which this needs"):
            found(blank, STREAM, **options)
    for constraint in ("support", "natural"):
        assert found(blank, STREAM, constraint=constraint).shape == (32, 1)
