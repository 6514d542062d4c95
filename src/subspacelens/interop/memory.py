"""Objects of other tools in memory, told apart by what they have and never by being run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import SubspaceError
from .control_vector import of_directions
from .foreign import Foreign, Name, Part
from .leace import of_eraser


def of_object(thing: Any) -> Foreign | None:
    """What an object of another tool holds, None where it is none that is known: an eraser of
    concept-erasure, a `ControlVector` of repeng, a `SteeringVector` of steering-vectors, an `SAE`
    of SAELens, a dictionary of dictionary_learning, an intervention of pyvene, a subspace that
    TransformerLens fitted.

    Raises `SubspaceError` for one that is damaged.
    """
    origin = f"a {type(thing).__name__} in memory"
    if hasattr(thing, "proj_left") and hasattr(thing, "proj_right"):
        numbers = {name: getattr(thing, name, None) for name in ("proj_left", "proj_right", "bias")}
        return of_eraser(numbers, origin)
    if hasattr(thing, "directions") and hasattr(thing, "model_type"):
        vectors = {int(layer): torch.as_tensor(v) for layer, v in thing.directions.items()}
        return of_directions(vectors, str(thing.model_type), origin)
    if hasattr(thing, "layer_activations") and hasattr(thing, "layer_type"):
        return _steering(thing, origin)
    if isinstance(thing, nn.Module) and hasattr(thing, "W_dec") and hasattr(thing, "W_enc"):
        return _sae(thing, origin)
    if isinstance(thing, nn.Module) and {"encoder.weight", "decoder.weight"} <= _names(thing):
        return _dictionary(thing, origin)
    basis = _basis(thing)
    if basis is None:
        return None
    place = getattr(thing, "hook_name", None)
    return Foreign(
        tool=type(thing).__module__.partition(".")[0],
        kind=type(thing).__name__,
        parts={
            "basis": Part(
                shape=(basis.shape[0], basis.shape[1]),
                columns=lambda _: basis.double(),
                operation="interchange",
                place=None if place is None else Name("TransformerLens", str(place)),
            )
        },
        origin=origin,
    )


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def _basis(thing: Any) -> Tensor | None:
    """The columns of a low-rank rotation, or of a subspace that a fit returned."""
    if hasattr(thing, "rotate_layer"):
        weight = thing.rotate_layer.weight.detach()
        if weight.shape[0] == weight.shape[1]:
            raise SubspaceError(
                f"{type(thing).__name__} rotates all {len(weight)} dimensions: save it and read "
                "the folder, which says which are swapped"
            )
        return weight
    for holder in (thing, getattr(thing, "subspace", None)):
        basis = getattr(holder, "basis", None)
        if isinstance(basis, Tensor) and basis.ndim == 2:
            return basis.detach()
    return None


def _steering(thing: Any, origin: str) -> Foreign:
    vectors = {int(layer): torch.as_tensor(v) for layer, v in thing.layer_activations.items()}
    found = of_directions(vectors, None, origin, tool="steering-vectors")
    kind = str(thing.layer_type)
    parts = {
        name: replace(part, place=Name("steering-vectors", f"{layer} {kind}"))
        for (name, part), layer in zip(found.parts.items(), sorted(vectors), strict=True)
    }
    return replace(found, parts=parts, kind=f"steering vector at {kind} of {len(parts)} blocks")


def _sae(thing: Any, origin: str) -> Foreign:
    meta: Any = getattr(getattr(thing, "cfg", None), "metadata", None) or {}
    said: Mapping[str, Any] = dict(meta.items())
    hook, out = said.get("hook_name"), said.get("hook_name_out")
    written, read = thing.W_dec.detach(), thing.W_enc.detach()
    place = None if hook is None else Name("TransformerLens", str(hook))
    crosses = out is not None or written.shape[1] != read.shape[0]
    shared: dict[str, Any] = dict(latents=len(written), operation="latent")
    refused = None
    if crosses and out is None:
        refused = f"{type(thing).__name__} reads at one place and writes at another"
    return Foreign(
        tool="SAELens",
        kind=f"{type(thing).__name__}, {len(written)} latents",
        parts={
            "W_dec": Part(
                shape=(written.shape[1], len(written)),
                columns=lambda rows: written[list(rows)].T.double(),
                place=Name("TransformerLens", str(out)) if out is not None else place,
                refused=refused,
                **shared,
            ),
            "W_enc": Part(
                shape=(read.shape[0], len(written)),
                columns=lambda rows: read[:, list(rows)].double(),
                place=place,
                **shared,
            ),
        },
        default="W_dec",
        origin=origin,
        model=said.get("model_name"),
        bos=said.get("prepend_bos"),
    )


def _dictionary(thing: nn.Module, origin: str) -> Foreign:
    state = {name: value.detach() for name, value in thing.named_parameters()}
    read, written = state["encoder.weight"], state["decoder.weight"]
    shared: dict[str, Any] = dict(
        shape=(len(written), len(read)), latents=len(read), operation="latent"
    )
    return Foreign(
        tool="dictionary_learning",
        kind=f"{type(thing).__name__}, {len(read)} latents",
        parts={
            "decoder": Part(columns=lambda rows: written[:, list(rows)].double(), **shared),
            "encoder": Part(columns=lambda rows: read[list(rows)].T.double(), **shared),
        },
        default="decoder",
        origin=origin,
    )
