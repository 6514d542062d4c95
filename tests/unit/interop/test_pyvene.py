"""Folders in the layout of pyvene, old and new, made with torch's own `orthogonal`."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from helpers_models import tiny_lens
from subspacelens import SiteError, SubspaceError
from subspacelens.core.geometry import principal_angles
from subspacelens.fit import given
from subspacelens.fit.foreign import from_foreign
from subspacelens.interop import read_foreign

WIDTH = 32


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("llama", dtype=torch.float32)


class Rotate(nn.Module):
    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, k))
        nn.init.orthogonal_(self.weight)


class Intervention(nn.Module):
    """The parameters of pyvene's rotations, trained for a few steps."""

    def __init__(self, width: int, k: int, **more: Tensor) -> None:
        super().__init__()
        torch.manual_seed(k)
        self.rotate_layer = parametrizations.orthogonal(Rotate(width, k))
        for name, value in more.items():
            setattr(self, name, nn.Parameter(value.float(), requires_grad=False))
        optimiser = torch.optim.Adam(self.rotate_layer.parameters(), lr=0.1)
        target = torch.randn(width, k)
        for _ in range(5):
            optimiser.zero_grad()
            (self.rotate_layer.weight * target).sum().backward()
            optimiser.step()

    @property
    def weight(self) -> Tensor:
        return self.rotate_layer.weight.detach()


NEW = "layer_{}_comp_{}_unit_pos_nunit_1#0"
OLD = "layer.{}.comp.{}.unit.pos.nunit.1#0"


def folder(
    path, state, kind: str, *, component: str = "block_output", layer: int = 1, key: str = NEW,
    units: int = 1, dimension: int | None = WIDTH,
):  # fmt: skip
    """What `IntervenableModel.save` writes."""
    path.mkdir()
    row = [layer, component, "pos", units, 2, None, None, None, None, None, None, None, None, None]
    config = {
        "representations": [row],
        "intervention_types": [f"<class 'pyvene.models.interventions.{kind}'>"],
        "intervention_dimensions": [dimension], "sorted_keys": [key.format(layer, component)],
        "model_type": "<class 'transformers...LlamaForCausalLM'>",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    name = key.format(layer, component).replace("nunit_1", f"nunit_{units}")
    torch.save(dict(state), path / f"intkey_{name}.bin")
    return path


def same_span(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float(principal_angles(a, b).max()) < 1e-3


@pytest.mark.parametrize("key", [NEW, OLD])
def test_a_low_rank_rotation_is_what_torch_makes_of_it(lens, tmp_path, key):
    made = Intervention(WIDTH, 2)
    path = folder(tmp_path / "das", made.state_dict(), "LowRankRotatedSpaceIntervention", key=key)
    found = read_foreign(path)
    assert (found.tool, [part.operation for part in found.parts.values()]) == (
        "pyvene", ["interchange"],
    )  # fmt: skip
    subspace = from_foreign(lens, found, "@END")
    assert str(subspace.site) == "L1.resid_post@END" and subspace.dim == 2
    assert same_span(subspace.basis, made.weight)
    assert subspace.fit["operation"] == "interchange" and subspace.fit["tool"] == "pyvene"
    assert len(subspace.fit["file_sha256"]) == 64


def test_its_parameters_are_no_basis(lens, tmp_path):
    """They have the shape of one, and another span: read as such they passed for years."""
    made = Intervention(WIDTH, 2)
    raw = made.state_dict()["rotate_layer.parametrizations.weight.original"]
    assert raw.shape == made.weight.shape and not same_span(raw, made.weight)
    path = folder(tmp_path / "das", made.state_dict(), "LowRankRotatedSpaceIntervention")
    (file,) = path.glob("*.bin")
    for key in ("original", "0.base"):
        with pytest.raises(SubspaceError, match="no part 'rotate_layer"):
            given(
                lens, "L1.resid_post@END", file, key=f"rotate_layer.parametrizations.weight.{key}"
            )
    subspace = given(lens, "L1.resid_post@END", file)
    assert same_span(subspace.basis, made.weight)
    with pytest.raises(SiteError, match="does not say where"):
        from_foreign(lens, read_foreign(file), "@END")


def test_a_file_contradicted_is_refused(lens, tmp_path):
    path = folder(
        tmp_path / "das", Intervention(WIDTH, 2).state_dict(), "LowRankRotatedSpaceIntervention"
    )
    found = read_foreign(path)
    assert str(from_foreign(lens, found, "L1.resid_post@S2").site) == "L1.resid_post@S2"
    with pytest.raises(SiteError, match=r"belongs at L1.resid_post .*, not L2.resid_post@END"):
        from_foreign(lens, found, "L2.resid_post@END")
    with pytest.raises(SiteError, match="says no token"):
        from_foreign(lens, found)


def test_square_rotations_swap_what_they_say(lens, tmp_path):
    rotated = Intervention(WIDTH, WIDTH)
    assert rotated.weight.shape == (WIDTH, WIDTH)
    three = folder(
        tmp_path / "three", rotated.state_dict(), "RotatedSpaceIntervention", dimension=3
    )
    assert same_span(from_foreign(lens, read_foreign(three), "@END").basis, rotated.weight[:, :3])
    everything = folder(tmp_path / "all", rotated.state_dict(), "RotatedSpaceIntervention")
    subspace = from_foreign(lens, read_foreign(everything), "@END")
    assert subspace.dim == WIDTH and "does not say which" in subspace.fit["notes"]

    bounded = Intervention(
        WIDTH, WIDTH, intervention_boundaries=torch.tensor([0.14]), temperature=torch.tensor(0.05)
    )
    path = folder(tmp_path / "bound", bounded.state_dict(), "BoundlessRotatedSpaceIntervention")
    subspace = from_foreign(lens, read_foreign(path), "@END")
    assert same_span(subspace.basis, bounded.weight[:, :5])  # .14 * 32 = 4.48: columns 0 to 4

    masks = torch.full((WIDTH,), -1.0)
    masks[[4, 9]] = 1.0
    masked = Intervention(WIDTH, WIDTH, masks=masks, temperature=torch.tensor(0.01))
    path = folder(tmp_path / "mask", masked.state_dict(), "SigmoidMaskRotatedSpaceIntervention")
    subspace = from_foreign(lens, read_foreign(path), "@END")
    assert same_span(subspace.basis, masked.weight[:, [4, 9]])
    assert "soft" not in subspace.fit["notes"]
    soft = masked.state_dict() | {"temperature": torch.tensor(2.0)}
    path = folder(tmp_path / "soft", soft, "SigmoidMaskRotatedSpaceIntervention")
    assert "soft" in from_foreign(lens, read_foreign(path), "@END").fit["notes"]


def test_a_mask_over_units(lens, tmp_path):
    mask = torch.full((WIDTH,), -1.0)
    mask[7] = 1.0
    state = {"mask": mask, "temperature": torch.tensor(0.01)}
    path = folder(tmp_path / "units", state, "SigmoidMaskIntervention")
    basis = from_foreign(lens, read_foreign(path), "@END").basis
    assert basis[7].item() == 1 and basis.norm().item() == 1


def test_mlp_activation_is_another_tensor_where_the_mlp_is_gated(tmp_path):
    made = Intervention(56, 1)
    path = folder(
        tmp_path / "gated", made.state_dict(), "LowRankRotatedSpaceIntervention",
        component="mlp_activation",
    )  # fmt: skip
    found = read_foreign(path)
    for site in ("@END", "L1.mlp_act@END"):
        with pytest.raises(SiteError, match="another tensor"):
            from_foreign(tiny_lens("llama"), found, site)
    plain = Intervention(128, 1)
    path = folder(
        tmp_path / "plain", plain.state_dict(), "LowRankRotatedSpaceIntervention",
        component="mlp_activation",
    )  # fmt: skip
    subspace = from_foreign(tiny_lens("gpt2"), read_foreign(path), "@END")
    assert str(subspace.site) == "L1.mlp_act@END" and same_span(subspace.basis, plain.weight)


def test_a_component_that_is_a_path(lens, tmp_path):
    made = Intervention(56, 1)
    path = folder(
        tmp_path / "path", made.state_dict(), "LowRankRotatedSpaceIntervention",
        component="model.layers[2].mlp.down_proj.input", layer=0,
        key="comp_model_layers[2]_mlp_down_proj_input_unit_pos_nunit_1#0",
    )  # fmt: skip
    assert str(from_foreign(lens, read_foreign(path), "@END").site) == "L2.mlp_act@END"


def test_loreft_is_read_by_its_rotation(lens, tmp_path):
    rotation = torch.linalg.qr(torch.randn(WIDTH, 3)).Q
    state = {"weight": torch.randn(3, WIDTH), "bias": torch.randn(3), "rotate_layer": rotation}
    path = folder(tmp_path / "reft", state, "LoreftIntervention")
    found = read_foreign(path)
    subspace = from_foreign(lens, found, "@END")
    assert same_span(subspace.basis, rotation) and subspace.fit["operation"] == "reft"
    (part,) = found.parts.values()
    assert torch.equal(part.numbers["weight"](), state["weight"])


def test_what_is_refused(lens, tmp_path):
    made = Intervention(WIDTH, 2).state_dict()
    several = folder(
        tmp_path / "several", made, "LowRankRotatedSpaceIntervention", units=2,
        key="layer_{}_comp_{}_unit_pos_nunit_1#0",
    )  # fmt: skip
    with pytest.raises(SubspaceError, match="2 positions at once"):
        from_foreign(lens, read_foreign(several), "@END")
    wrong = folder(tmp_path / "wrong", made, "BoundlessRotatedSpaceIntervention")
    with pytest.raises(SubspaceError, match="the configuration says Boundless"):
        read_foreign(wrong)
    none = folder(tmp_path / "none", made, "VanillaIntervention")
    next(iter(none.glob("*.bin"))).unlink()
    with pytest.raises(SubspaceError, match="saves no numbers of its own"):
        from_foreign(lens, read_foreign(none), "@END")
    torch.save(nn.Linear(2, 2), next(iter(wrong.glob("*.bin"))))
    with pytest.raises(SubspaceError, match="more than tensors"):
        read_foreign(wrong)
