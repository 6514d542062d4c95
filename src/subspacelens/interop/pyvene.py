"""Folders of pyvene, and of pyreft, which saves as pyvene does.

A folder has `config.json` and a torch file `intkey_<key>.bin` for each trainable intervention. Its
bases are kept as the parameters of torch's `orthogonal`, which have the shape of a basis and are
none: a low-rank one as Householder vectors, a square one as a skew-symmetric matrix, both on top of
`base`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import SubspaceError
from .containers import loaded, reading
from .foreign import Foreign, Name, Part
from .registry import Source, reader

_ORIGINAL = "parametrizations.weight.original"
_ROTATION = "rotate_layer."
_BASE = "parametrizations.weight.0.base"
_FIELDS = (
    "layer", "component", "unit", "max_number_of_units", "low_rank_dimension", "intervention_type",
    "intervention", "subspace_partition",
)  # fmt: skip
_CLASS = re.compile(r"<class '(.+)'>")
_ROTATIONS = {
    "LowRankRotatedSpaceIntervention", "RotatedSpaceIntervention",
    "BoundlessRotatedSpaceIntervention", "SigmoidMaskRotatedSpaceIntervention",
}  # fmt: skip


@reader("pyvene")
def pyvene_folder(source: Source) -> Foreign | None:
    """A folder that `IntervenableModel.save` or `ReftModel.save` wrote."""
    config = source.config("config.json")
    if "representations" not in config or "intervention_types" not in config:
        return None
    with reading(source.path / "config.json"):
        represented = [_represented(entry) for entry in config["representations"]]
        types = [_class(text) for text in config["intervention_types"]]
        dimensions = config.get("intervention_dimensions") or [None] * len(represented)
        rows = list(zip(represented, types, dimensions, strict=True))
    parts, counts = {}, {}
    for entry, kind, dimension in rows:
        new, old = _keys(entry)
        number = counts.get(new, 0)
        counts[new] = number + 1
        files = [source.path / f"intkey_{key}#{number}.bin" for key in (new, old)]
        file = next((file for file in files if file.is_file()), None)
        name = f"{new}#{number}"
        parts[name] = (
            _refused(entry, kind, f"{kind} at {_place(entry)} saves no numbers of its own")
            if file is None
            else _part(_state(file), entry, kind, dimension, str(file))
        )
    if not parts:
        raise SubspaceError(f"{source.path}: the configuration names no intervention")
    reft = any("reft" in kind.lower() for _, kind, _ in rows)
    return Foreign(
        tool="pyreft" if reft else "pyvene",
        kind="; ".join(
            f"{kind} at {place.text}" if (place := _place(entry)) else kind
            for entry, kind, _ in rows
        ),
        parts=parts,
        origin=str(source.path),
        path=source.path,
        notes=("positions are given when it is called and are not saved",),
    )


@reader("pyvene intervention")
def intervention_file(source: Source) -> Foreign | None:
    """One `intkey_….bin`, without the folder that says where it belongs, or another state dict with
    parameters of torch's `orthogonal`."""
    found = sorted(name for name in source.names if name.endswith(_ORIGINAL))
    if not found and not ({"weight", "rotate_layer"} <= source.names and _is_reft(source.tensors)):
        return None
    state = source.tensors
    if len(found) > 1 or (found and not found[0].startswith("rotate_layer.")):
        return _orthogonal(state, found, source)
    kind = _kind(state)
    return Foreign(
        tool="pyreft" if kind == "LoreftIntervention" else "pyvene",
        kind=kind,
        parts={"basis": _part(state, {}, kind, None, str(source.path))},
        origin=str(source.path),
        path=source.path,
        notes=("layer and component stand in the config.json of its folder",),
    )


def _orthogonal(state: Mapping[str, Any], names: Sequence[str], source: Source) -> Foreign:
    """Rotations of any module, such as TransformerLens' `LearnedSubspace`."""
    parts = {}
    for name in names:
        prefix = name.removesuffix(_ORIGINAL)
        with reading(source.path):
            basis = rotation(state[name], state.get(prefix + _BASE))
        parts[prefix + "weight"] = Part(
            shape=(basis.shape[0], basis.shape[1]), columns=_of(basis), operation="unsaid"
        )
    return Foreign(
        tool="torch", kind="orthogonal parametrisation", parts=parts, origin=str(source.path),
        path=source.path,
    )  # fmt: skip


def _represented(entry: Any) -> dict[str, Any]:
    if isinstance(entry, Mapping):
        return dict(entry)
    return dict(zip(_FIELDS, entry, strict=False))


def _class(text: str) -> str:
    match = _CLASS.fullmatch(str(text))
    return (match.group(1) if match else str(text)).rpartition(".")[2]


def _keys(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What the file of an intervention is called since 2025, and before."""
    layer, component, unit, count = (entry[name] for name in _FIELDS[:4])
    old = f"layer.{layer}.comp.{component}.unit.{unit}.nunit.{count}"
    parts = (str(component).replace(".", "_"), str(unit).replace(".", "_"), count)
    where = "comp_{}_unit_{}_nunit_{}".format(*parts)
    return (where if "." in component else f"layer_{layer}_{where}"), old


def _place(entry: Mapping[str, Any]) -> Name | None:
    if not entry:
        return None
    if "." in entry["component"]:
        return Name("module path", entry["component"])
    return Name("pyvene", f"layer.{entry['layer']}.comp.{entry['component']}")


def _state(file: Path) -> dict[str, Any]:
    state = loaded(file)
    if not isinstance(state, Mapping):
        raise SubspaceError(f"{file}: a state dict was expected")
    return dict(state)


def _refused(entry: Mapping[str, Any], kind: str, why: str) -> Part:
    return Part(
        shape=(0, 0), columns=lambda _: torch.empty(0, 0), operation="unsaid", place=_place(entry),
        refused=why, notes=(kind,),
    )  # fmt: skip


def _is_reft(state: Mapping[str, Any]) -> bool:
    """Whether these are the numbers of LoReFT: W (k, d), b (k), R (d, k)."""
    if not {"weight", "bias", "rotate_layer"} <= state.keys():
        return False
    if not all(isinstance(state[name], Tensor) for name in ("weight", "bias", "rotate_layer")):
        return False
    weight, bias, rotation = (state[name] for name in ("weight", "bias", "rotate_layer"))
    return weight.shape == rotation.T.shape and bias.shape == weight.shape[:1]


def _kind(state: Mapping[str, Any]) -> str:
    """The class whose numbers these are, where no configuration says it."""
    if _is_reft(state):
        return "LoreftIntervention"
    rows, columns = state[_ROTATION + _ORIGINAL].shape
    if rows != columns:
        return "LowRankRotatedSpaceIntervention"
    if "intervention_boundaries" in state:
        return "BoundlessRotatedSpaceIntervention"
    return "SigmoidMaskRotatedSpaceIntervention" if "masks" in state else "RotatedSpaceIntervention"


def _part(
    state: Mapping[str, Any], entry: Mapping[str, Any], kind: str, dimension: Any, origin: str
) -> Part:
    units = int(entry.get("max_number_of_units") or 1)
    if units > 1:
        why = f"{kind} over {units} positions at once is a basis of all of them, not of one site"
        return _refused(entry, kind, why)
    if _is_reft(state):
        return _loreft(state, entry)
    if kind == "SigmoidMaskIntervention" and "mask" in state:
        return _chosen_units(state, entry)
    if "source_representation" in state and kind == "AdditionIntervention":
        return _added(state, entry)
    if _ROTATION + _ORIGINAL not in state:
        return _refused(entry, kind, f"{kind} is not read: it has no rotation")
    expected = _kind(state)
    if kind in _ROTATIONS and kind != expected:
        raise SubspaceError(
            f"{origin}: the configuration says {kind}, the file holds the numbers of {expected}"
        )
    with reading(Path(origin)):
        basis = rotation(state[_ROTATION + _ORIGINAL], state.get(_ROTATION + _BASE))
        swapped, notes, mask = _swapped(state, expected, basis.shape[1], dimension)
    if kind not in _ROTATIONS:
        notes = (*notes, f"{kind} is no class of pyvene: it is taken to act as {expected} does")
    if entry.get("subspace_partition"):
        notes = (*notes, f"its columns are parted as {entry['subspace_partition']}")
    if not swapped:
        return _refused(entry, kind, f"{expected} whose mask leaves every column as it is")
    return Part(
        shape=(basis.shape[0], len(swapped)),
        columns=_of(basis[:, swapped]),
        operation="interchange",
        place=_place(entry),
        notes=notes,
        numbers={"mask": _number(mask[swapped])},
    )


def rotation(original: Tensor, base: Tensor | None) -> Tensor:
    """The columns that torch's `orthogonal` makes of its parameters, float64 (d, k): `original`
    (d, k), `base` (d, d) or None. Raises `ValueError` for other shapes."""
    x = original.detach().double()
    if x.ndim != 2 or x.shape[0] < x.shape[1]:
        raise ValueError(f"parameters of shape {tuple(x.shape)} are those of no basis")
    if x.shape[0] == x.shape[1]:
        lower = x.tril()
        q = torch.linalg.matrix_exp(lower - lower.T)
    else:
        lower = x.tril(-1)
        q = torch.linalg.householder_product(lower, 2 / (1 + lower.square().sum(0)))
        q = q * x.diagonal().int()
    return q if base is None else base.detach().double() @ q


def _swapped(
    state: Mapping[str, Any], kind: str, count: int, dimension: Any
) -> tuple[list[int], tuple[str, ...], Tensor]:
    """Which columns take the source's value, what there is to say of it, and the share (count,) of
    each that the tool writes. pyvene's boundless mask is ½ at its first column, at any temperature:
    it is a sigmoid of the column's number."""
    hard = torch.ones(count, dtype=torch.float64)
    if kind == "BoundlessRotatedSpaceIntervention":
        boundary = float(state["intervention_boundaries"].clamp(1e-3, 1)[0]) * count
        position = torch.arange(count, dtype=torch.float64)
        heat = float(state["temperature"])
        mask = (position / heat).sigmoid() * ((boundary - position) / heat).sigmoid()
        swapped = [i for i in range(count) if i < boundary]
        return swapped, _softness(mask, position < boundary), mask
    if kind == "SigmoidMaskRotatedSpaceIntervention":
        masks = state["masks"].double()
        soft = (masks / float(state["temperature"])).sigmoid()
        return masks.gt(0).nonzero().flatten().tolist(), _softness(soft, masks > 0), soft
    if kind == "LowRankRotatedSpaceIntervention":
        return list(range(count)), (), hard
    saved = state.get("interchange_dim")
    swapped = dimension if isinstance(dimension, int) else None
    swapped = int(saved) if swapped is None and saved is not None else swapped
    if swapped is None or swapped >= count:
        return (
            list(range(count)),
            (
                f"all {count} rotated columns: the saved file does not say which `subspaces` were "
                "swapped when it was called",
            ),
            hard,
        )
    return list(range(swapped)), (f"the first {swapped} of {count} rotated columns",), hard


def _softness(soft: Tensor, hard: Tensor) -> tuple[str, ...]:
    apart = float((soft - hard.double()).abs().max())
    if apart < 0.01:
        return ()
    return (
        f"its mask is soft: the tool writes between {float(soft.min()):.2f} and "
        f"{float(soft.max()):.2f} of a column, here a column is in or out",
    )


def _loreft(state: Mapping[str, Any], entry: Mapping[str, Any]) -> Part:
    r = state["rotate_layer"].detach().double()
    return Part(
        shape=(r.shape[0], r.shape[1]),
        columns=_of(r),
        operation="reft",
        place=_place(entry),
        notes=("the tool edits h + R(Wh + b - Rᵀh); here the columns of R are the subspace",),
        numbers={name: _number(state[name]) for name in ("weight", "bias", "rotate_layer")},
    )


def _chosen_units(state: Mapping[str, Any], entry: Mapping[str, Any]) -> Part:
    mask = state["mask"].double()
    chosen = mask.gt(0).nonzero().flatten()
    soft = (mask / float(state["temperature"])).sigmoid()
    if not len(chosen):
        return _refused(entry, "SigmoidMaskIntervention", "its mask leaves every unit as it is")
    return Part(
        shape=(len(mask), len(chosen)),
        columns=_of(torch.eye(len(mask), dtype=torch.float64)[:, chosen]),
        operation="interchange",
        place=_place(entry),
        notes=_softness(soft, mask > 0),
    )


def _added(state: Mapping[str, Any], entry: Mapping[str, Any]) -> Part:
    vector = state["source_representation"].detach().double().flatten()
    return Part(
        shape=(len(vector), 1),
        columns=_of(vector[:, None]),
        operation="add",
        place=_place(entry),
        numbers={"vector": _number(vector)},
    )


def _of(basis: Tensor) -> Callable[[Sequence[int]], Tensor]:
    return lambda _: basis


def _number(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor.detach()
