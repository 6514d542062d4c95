"""W' = W + a bᵀ on the down-projection of an MLP: a value, a context manager, a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.errors import EditError
from ..core.files import write_atomically
from ..core.site import Site
from ..model.hooks import on_output
from ..model.lens import LensModel
from ..model.mapping.values import Linear

FORMAT = "subspacelens.rank-one-edit/1"


@dataclass(frozen=True, eq=False)
class RankOneEdit:
    """Adds a bᵀ to the down-projection of `layer`: `a` (d_model,) is written in proportion to how
    much of `b` (d_mlp,) the activation holds."""

    layer: int
    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)

    def save(self, path: Path | str, lens: LensModel) -> None:
        """Writes safetensors with the factors, and the model that they are for as metadata."""
        metadata = {
            "format": FORMAT,
            "layer": str(self.layer),
            "parameter": _down_projection(lens, self.layer).name,
            "model": lens.id,
            "weights_sha256": lens.weights_sha256,
        }
        factors = {"a": self.a.detach().cpu().contiguous(), "b": self.b.detach().cpu().contiguous()}
        write_atomically(Path(path), save(factors, metadata=metadata))

    @classmethod
    def load(cls, path: Path | str, lens: LensModel) -> RankOneEdit:
        """Reads a file written by `save`. Raises `EditError` for a damaged file or one made for
        another model."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise EditError(f"{path} is not an edit: no '{FORMAT}' mark in it")
                found = cls(int(metadata["layer"]), file.get_tensor("a"), file.get_tensor("b"))
                made_for, name = metadata["weights_sha256"], metadata["model"]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise EditError(f"{path} cannot be read as an edit: {error}") from None
        if made_for != lens.weights_sha256:
            raise EditError(
                f"{path} was made for model {name} ({made_for[:12]}), not {lens.id} "
                f"({lens.weights_sha256[:12]})"
            )
        return found


@contextmanager
def edited(lens: LensModel, *edits: RankOneEdit) -> Iterator[None]:
    """The model's weights with the edits in them, and bit by bit as they were afterwards.

    Raises `EditError` for an edit of another shape.
    """
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        with torch.no_grad():
            for edit in edits:
                linear = _down_projection(lens, edit.layer)
                shape = tuple(linear.weight.shape)
                if (len(edit.a), len(edit.b)) != shape:
                    raise EditError(
                        f"an edit of {len(edit.a)} x {len(edit.b)} does not fit {linear.name}, "
                        f"which is {shape[0]} x {shape[1]}"
                    )
                weight = linear.module.get_parameter("weight")
                kept.setdefault(edit.layer, (weight, weight.detach().clone()))
                change = torch.outer(edit.a.double(), edit.b.double()).to(weight)
                weight.data.add_(change.T if linear.transposed else change)
        yield
    finally:
        for weight, before in kept.values():
            weight.data.copy_(before)


@contextmanager
def edited_each(lens: LensModel, edits: Sequence[RankOneEdit]) -> Iterator[None]:
    """Row i of every batch sees edit i alone: many edits of one layer in one pass. The same
    numbers as `edited`, up to rounding, without touching a weight.

    Raises `EditError` if the edits are of several layers.
    """
    layers = {edit.layer for edit in edits}
    if len(layers) != 1:
        raise EditError(f"edits of layers {sorted(layers)} in one batch: give one layer")
    module = _down_projection(lens, edits[0].layer).module
    a = torch.stack([edit.a for edit in edits])[:, None]
    b = torch.stack([edit.b for edit in edits])[..., None]
    seen: list[Tensor] = []

    def keep(_module, args):
        seen.append(args[0])

    def add(out: Tensor) -> Tensor:
        x = seen.pop()
        rows = x.reshape(len(edits), -1, x.shape[-1])
        change = (rows.to(b.dtype) @ b.to(x.device)) * a.to(x.device)
        return out + change.to(out).reshape(out.shape)

    handle = module.register_forward_pre_hook(keep)
    try:
        with on_output(module, add):
            yield
    finally:
        handle.remove()


def _down_projection(lens: LensModel, layer: int) -> Linear:
    """Raises `SiteError` where the model lacks it."""
    linear = lens.map.block(Site(layer, "mlp_act", "END")).down_proj
    assert linear is not None
    return linear
