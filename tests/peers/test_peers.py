"""Artefacts made by the tools themselves: read, and the effect held against theirs."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from subspacelens import Site, SiteError, SubspaceError, audit, audit_addition, own_patch, patch
from subspacelens.certify.plain_hooks import part_of, place_at
from subspacelens.core.geometry import principal_angles
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import Add, SubspacePatch
from subspacelens.engine.task_capture import TaskCapture, capture_task
from subspacelens.fit.foreign import from_foreign
from subspacelens.fit.vector import read_vector
from subspacelens.interop import read_foreign
from subspacelens.interop.writing import Outgoing, export
from subspacelens.model.hooks import at_columns
from subspacelens.tasks import Pair, PairSet, Prompt, Task

pytestmark = pytest.mark.peers
CLOSE = 1e-3


def pairs_of(place, base=None, source=None) -> PairSet:
    """The pairs of the place, or of other prompts; z is 0 and 1 by turns."""
    labels = {"X": place.column, "END": place.base.shape[1] - 1}
    base, source = (place.base, place.source) if base is None else (base, source)
    return PairSet(
        "peers", "test",
        tuple(
            Pair(base=Prompt("", tuple(b), labels), source=Prompt("", tuple(s), labels),
                 answer=3 + i, target=20 + i, z=(i % 2, 1 - i % 2))
            for i, (b, s) in enumerate(zip(base.tolist(), source.tolist(), strict=True))
        ),
    )  # fmt: skip


def captures_of(place, site: Site) -> TaskCapture:
    """With random prompts to fit on."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, *place.base.shape)
    others = torch.randint(3, int(place.base.max()), shape, generator=generator)
    task = Task("peers", pairs_of(place, *others), pairs_of(place))
    return capture_task(place.lens, task, [site])


def hooked(place, site: Site, change) -> torch.Tensor:
    """Logits at the last token of a plain pass in which the site becomes `change(base, source)`."""
    lens, columns = place.lens, torch.full((len(place.base),), place.column)
    where, module = place_at(lens, site)
    part, seen = part_of(lens, site), []

    def see(x):
        seen.append(x.clone())

    with torch.no_grad():
        with at_columns(where, module, columns, see, part=part):
            lens.model(place.source)
        with at_columns(where, module, columns, lambda x: change(x, seen[0]), part=part):
            return lens.model(place.base).logits[:, -1]


def same_effect(place, subspace, theirs: np.ndarray) -> None:
    """Our replay, plain hooks, and the tool's own intervention agree."""
    basis, pairs = subspace.basis, pairs_of(place)
    plain = hooked(place, subspace.site, lambda b, s: b + ((s - b) @ basis) @ basis.T)
    theirs = torch.from_numpy(theirs)
    assert (plain - theirs).abs().max() < CLOSE
    untouched = place.lens.model(place.base).logits[:, -1]
    assert (plain - untouched).abs().max() > 0.05  # it does something
    captured = capture(place.lens, pairs, [subspace.site])
    ours = captured.at(subspace.site, place.lens).outcomes(SubspacePatch(basis)).logit_diff
    n = torch.arange(len(pairs))
    assert (ours - (theirs[n, 3 + n] - theirs[n, 20 + n])).abs().max() < CLOSE
    captures = captures_of(place, subspace.site)
    record = audit(place.lens, captures, subspace, budget="fast").record
    assert record.verdict.label == "undetermined"  # of so few pairs
    drop = float((captures.test.clean.logit_diff - ours).mean())
    assert record.effects["subspace"].nats.value == pytest.approx(drop, abs=CLOSE)
    assert record.site == str(subspace.site)


def test_pyvene(place, peer, tmp_path):
    logits = peer("pyvene", "pyvene_das")
    sizes = {"low_rank": 2, "rotated": 3, "boundless": 5, "masked": 2, "mlp_output": 2, "path": 2}
    for name, size in sizes.items():
        subspace = from_foreign(place.lens, read_foreign(tmp_path / name), "@X")
        assert subspace.dim == size, name
        if name == "boundless":
            masked(place, subspace, tmp_path / name, logits[name])
            continue
        same_effect(place, subspace, logits[name])
    assert str(from_foreign(place.lens, read_foreign(tmp_path / "path"), "@X").site) == (
        "L1.mlp_act@X"
    )
    with pytest.raises(SiteError, match="another tensor"):
        from_foreign(place.lens, read_foreign(tmp_path / "mlp_activation"), "@X")


def masked(place, subspace, folder, theirs) -> None:
    """pyvene writes half of the first column of a boundless rotation, whatever its temperature, so
    that no subspace does what it does: that is said, and the shares are there."""
    (part,) = read_foreign(folder).parts.values()
    v, mask = part.columns(()).float(), part.numbers["mask"]().float()
    assert mask.round(decimals=3).tolist() == [0.5, 1, 1, 1, 1]
    assert "its mask is soft" in subspace.fit["notes"]
    assert principal_angles(subspace.basis, v).max() < 1e-3
    plain = hooked(place, subspace.site, lambda b, s: b + (((s - b) @ v) * mask) @ v.T)
    assert (plain - torch.from_numpy(theirs)).abs().max() < CLOSE


def outgoing(place, site: str, k: int = 1, **options) -> Outgoing:
    where = Site.parse(site)
    torch.manual_seed(1)
    basis = torch.linalg.qr(torch.randn(place.lens.map.dim(where), k)).Q.contiguous()
    return Outgoing(basis=basis, site=where, lens=place.lens, **options)


def interchanged(place, made: Outgoing) -> torch.Tensor:
    v = made.basis
    return hooked(place, made.site, lambda b, s: b + ((s - b) @ v) @ v.T)


def test_pyvene_runs_what_we_write(place, peer, tmp_path):
    made = {
        "block": outgoing(place, "L1.resid_post@X", 2),
        "input": outgoing(place, "L2.resid_pre@X"),
        "mlp": outgoing(place, "L1.mlp_act@X", 2),
        "heads": outgoing(place, "L1.head_z@X", 3),
    }
    lines = {name: export(each, "pyvene", tmp_path / name) for name, each in made.items()}
    logits = peer("pyvene", "pyvene_load", folders=lines)
    for name, each in made.items():
        assert (interchanged(place, each) - torch.from_numpy(logits[name])).abs().max() < CLOSE


def test_pyreft(place, peer, tmp_path):
    logits = peer("pyreft", "pyreft_train")["logits"]
    found = read_foreign(tmp_path / "reft")
    assert found.tool == "pyreft"
    subspace = from_foreign(place.lens, found, "@X")
    (part,) = found.parts.values()
    w, b, r = (part.numbers[name]() for name in ("weight", "bias", "rotate_layer"))
    plain = hooked(place, subspace.site, lambda x, _: x + (x @ w.T + b - x @ r) @ r.T)
    assert (plain - torch.from_numpy(logits)).abs().max() < CLOSE
    assert principal_angles(subspace.basis, r).max() < 1e-3
    same_answers(place, {str(subspace.site): own_patch(place.lens, found, "@X")}, logits)


def test_saelens(place, peer, tmp_path):
    logits = peer("sae-lens", "saelens_save")
    for kind in ("standard", "gated", "topk", "jumprelu"):
        found = read_foreign(tmp_path / kind)
        assert found.kind == f"{kind} sparse autoencoder, 40 latents" and found.bos is False
        subspace = from_foreign(place.lens, found, "@X", rows=[7])
        assert str(subspace.site) == "L1.resid_post@X"
        same_effect(place, subspace, logits[kind])
        if kind in ("standard", "jumprelu"):
            own = own_patch(place.lens, found, "@X", rows=[7], value=5.0)
            same_answers(place, {str(subspace.site): own}, logits[f"{kind}.set"])


def test_repeng(place, peer, tmp_path):
    made = outgoing(place, "L1.resid_post@X", scale=3.0)
    export(made, "control-vector", tmp_path / "ours.gguf")
    logits = peer("repeng", "repeng_train", ours=str(tmp_path / "ours.gguf"))
    found = read_foreign(tmp_path / "vector.gguf")
    assert found.model == "llama" and set(found.parts) == {f"direction.{n}" for n in (1, 2, 3)}
    vectors = [(layer, found.parts[f"direction.{layer}"].numbers["vector"]()) for layer in (1, 2)]
    assert (added(place, vectors, 1.5) - torch.from_numpy(logits["both"])).abs().max() < CLOSE
    changes = {f"L{layer}.resid_post@*": Add(v, 1.5) for layer, v in vectors}
    same_addition(place, changes, logits["both"])
    ours = added(place, [(1, 3 * made.basis[:, 0])], 1.0)
    assert (ours - torch.from_numpy(logits["ours"])).abs().max() < CLOSE


@pytest.mark.skipif(
    tuple(map(int, (platform.libc_ver()[1] or "0").split(".")[:2])) < (2, 38),
    reason="the wheel of llama.cpp asks for glibc 2.38",
)
def test_llama_cpp(place, peer, tmp_path):
    """repeng's file and ours, by llama.cpp's own adapter."""
    made = outgoing(place, "L1.resid_post@X", scale=3.0)
    export(made, "control-vector", tmp_path / "ours.gguf")
    peer("repeng", "repeng_train", ours=str(tmp_path / "ours.gguf"))
    files = {name: str(tmp_path / f"{name}.gguf") for name in ("ours", "vector")}
    done = peer("llama.cpp", "llama_cpp_control", files=files, strength=1.5)
    untouched = place.lens.model(place.base).logits[:, -1]
    assert (untouched - torch.from_numpy(done["untouched"])).abs().max() < CLOSE
    for name, file in files.items():
        found = read_foreign(file)
        changes = {
            f"L{key.removeprefix('direction.')}.resid_post@*": own_patch(
                place.lens, found, "@X", key=key, alpha=1.5
            )
            for key in found.parts
        }
        same_addition(place, changes, done[name])


def added(place, vectors, strength: float, stream: str = "resid_post") -> torch.Tensor:
    """Logits with vectors added to what a stream's module gives at all positions."""
    handles = [
        place_at(place.lens, Site(layer, stream, "X"))[1].register_forward_hook(
            lambda _m, _a, out, v=vector: out + strength * v.to(out)
        )
        for layer, vector in vectors
    ]
    try:
        with torch.no_grad():
            return place.lens.model(place.base).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()


def test_steering_vectors(place, peer):
    done = peer("steering-vectors", "steering_train")
    streams = {"decoder_block": "resid_post", "mlp": "mlp_out", "self_attn": "attn_out"}
    for kind, stream in streams.items():
        vectors = {layer: torch.from_numpy(done[f"{kind}.{layer}"]) for layer in (1, 2)}
        found = read_foreign(SimpleNamespace(layer_activations=vectors, layer_type=kind))
        parts = {
            from_foreign(place.lens, found, "@X", key=key).site: part.numbers["vector"]()
            for key, part in found.parts.items()
        }
        assert {site.stream for site in parts} == {stream}
        ours = added(place, [(s.layer, v) for s, v in parts.items()], 1.5, stream)
        assert (ours - torch.from_numpy(done[f"{kind}.logits"])).abs().max() < CLOSE
        changes = {f"L{site.layer}.{stream}@*": Add(v, 1.5) for site, v in parts.items()}
        same_addition(place, changes, done[f"{kind}.logits"])


def test_concept_erasure(place, peer, tmp_path):
    made = outgoing(place, "L1.resid_post@X", 2)
    export(made, "leace", tmp_path / "ours.pt")
    done = peer("concept-erasure", "leace_fit", ours=str(tmp_path / "ours.pt"))
    found = read_foreign(tmp_path / "leace.pt")
    numbers = {name: read() for name, read in next(iter(found.parts.values())).numbers.items()}
    x = torch.from_numpy(done["x"])
    erased = x - (x - numbers["bias"]) @ numbers["proj_right"].T @ numbers["proj_left"].T
    assert (erased - torch.from_numpy(done["erased"])).abs().max() < CLOSE
    own = own_patch(place.lens, found, "L1.resid_post@X")
    assert (x + own.delta(x, x) - erased).abs().max() < CLOSE
    assert found.kind.startswith("oblique") and set(found.parts) == {"writes", "reads"}
    ours = x - x @ made.basis @ made.basis.T
    assert (ours - torch.from_numpy(done["ours"])).abs().max() < CLOSE


def test_transformer_lens(place, peer, tmp_path):
    made = {
        "mlp": outgoing(place, "L1.mlp_act@X", 2), "block": outgoing(place, "L2.resid_post@X"),
        "head": outgoing(place, "L1.head_z.2@X", 2), "heads": outgoing(place, "L1.head_z@X", 2),
    }  # fmt: skip
    for name, each in made.items():
        export(each, "transformer-lens", tmp_path / f"to_{name}")
    folders = {name: str(tmp_path / f"to_{name}") for name in made}
    logits = peer("transformer-lens", "transformer_lens_das", folders=folders)
    for name, site in (("mlp", "blocks.1.mlp.hook_post@X"), ("resid", "blocks.2.hook_resid_pre@X")):
        subspace = from_foreign(place.lens, read_foreign(tmp_path / f"{name}.pt"), site)
        same_effect(place, subspace, logits[name])
    # What its bridge writes at `hook_resid_mid` only the MLP reads: another patch.
    middle = "blocks.2.hook_resid_mid@X"
    subspace = from_foreign(place.lens, read_foreign(tmp_path / "mid.pt"), middle)
    v, theirs = subspace.basis, torch.from_numpy(logits["mid"])
    before_norm = hooked(place, subspace.site, lambda b, s: b + ((s - b) @ v) @ v.T)
    assert (before_norm - theirs).abs().max() < CLOSE
    captured = capture(place.lens, pairs_of(place), [subspace.site])
    ours = captured.at(subspace.site, place.lens).outcomes(SubspacePatch(v)).logit_diff
    n = torch.arange(len(ours))
    assert (ours - (theirs[n, 3 + n] - theirs[n, 20 + n])).abs().max() > 10 * CLOSE
    for name, each in made.items():
        theirs = torch.from_numpy(logits[f"ours_{name}"])
        assert (interchanged(place, each) - theirs).abs().max() < CLOSE, name


def test_nnsight(place, peer, tmp_path):
    made = {
        "mlp": outgoing(place, "L1.mlp_act@X", 2), "block": outgoing(place, "L2.resid_post@X"),
        "head": outgoing(place, "L1.head_z.2@X", 2),
    }  # fmt: skip
    folders = {
        name: (str(tmp_path / name), export(each, "nnsight", tmp_path / name))
        for name, each in made.items()
    }
    logits = peer("nnsight", "nnsight_edit", folders=folders)
    for name, each in made.items():
        theirs = torch.from_numpy(logits[name])
        assert (interchanged(place, each) - theirs).abs().max() < CLOSE, name


def test_dictionary_learning(place, peer, tmp_path):
    done = peer("dictionary-learning", "dictionary_save")
    for file, name in (("ae.pt", "latent"), ("gated.pt", "gated")):
        found = read_foreign(tmp_path / file)
        subspace = from_foreign(place.lens, found, "L1.resid_post@X", rows=[5])
        theirs = torch.from_numpy(done[name])[0]
        assert float((subspace.basis[:, 0] @ theirs).abs() / theirs.norm()) == pytest.approx(
            1, abs=1e-5
        )
    assert found.kind.startswith("gated")
    x, found = torch.from_numpy(done["x"]), read_foreign(tmp_path / "ae.pt")
    own = own_patch(place.lens, found, "L1.resid_post@X", rows=[5], value=2.0)
    assert (x + own.delta(x, x) - torch.from_numpy(done["set"])).abs().max() < CLOSE


def test_causalab(place, peer, tmp_path):
    logits = peer("causalab", "causalab_save")
    for name, size in (("whole", 4), ("chosen", 2)):
        for file in ("unit_featurizer", "unit_inverse_featurizer"):
            found = read_foreign(tmp_path / name / file)
            assert found.tool == "causalab / MIB"
            subspace = from_foreign(place.lens, found, "L1.resid_post@X")
            assert subspace.dim == size
        same_effect(place, subspace, logits[name])


def test_easyedit(place, peer, tmp_path):
    logits = peer("easyedit", "easyedit_caa")["logits"]
    vectors = []
    for layer in (1, 2):
        file = tmp_path / "caa_vector" / f"layer_{layer}.pt"
        found = read_vector(place.lens, Site(layer, "resid_post", "X"), file)
        vectors.append((layer, found.values))
    assert (added(place, vectors, 1.5) - torch.from_numpy(logits)).abs().max() < CLOSE
    same_addition(place, {f"L{layer}.resid_post@*": Add(v, 1.5) for layer, v in vectors}, logits)


def test_axbench(place, peer, tmp_path):
    logits = peer("axbench", "axbench_save")["logits"]
    file, site = tmp_path / "SteeringVector_weight.pt", Site(1, "resid_post", "X")
    with pytest.raises(SubspaceError, match="holds several vectors"):
        read_vector(place.lens, site, file)
    vector = read_vector(place.lens, site, file, row=1).values
    assert (added(place, [(1, vector)], 1.5) - torch.from_numpy(logits)).abs().max() < CLOSE
    same_addition(place, {"L1.resid_post@*": Add(vector, 1.5)}, logits)


def same_addition(place, changes, theirs: np.ndarray) -> None:
    """Our replay of additions at all tokens and the tool's own."""
    where, change = next(iter(changes.items()))
    site = Site.parse(where.replace("*", "X"))
    captures = captures_of(place, site)
    result = audit_addition(place.lens, captures, site, change.vector, alpha=change.alpha)
    assert result.label == "undetermined" and result.record.effects["add"].nats.value is not None
    same_answers(place, changes, theirs)


def same_answers(place, changes, theirs: np.ndarray) -> None:
    """Our replay of patches and the tool's own intervention."""
    ours = patch(place.lens, pairs_of(place), changes).patched.logit_diff
    n = torch.arange(len(ours))
    theirs = torch.from_numpy(theirs)
    assert (ours - (theirs[n, 3 + n] - theirs[n, 20 + n])).abs().max() < CLOSE
    untouched = place.lens.model(place.base).logits[:, -1]
    assert (theirs - untouched).abs().max() > 0.05
