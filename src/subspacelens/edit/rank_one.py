"""W' = W + a bᵀ on the down-projection of an MLP: a value, a context manager, a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..core.errors import EditError
from ..core.identity import MODEL
from ..core.site import Site
from ..core.tensorfile import TensorFile
from ..model.hooks import exclusive, on_input, on_output
from ..model.lens import LensModel
from ..model.mapping.values import Linear

FORMAT = "subspacelens.rank-one-edit/2"


@dataclass(frozen=True, eq=False)
class RankOneEdit:
    """W' = W + a bᵀ for the down-projection of `layer`: `a` (d_model,) is written in proportion to
    how much of `b` (d_mlp,) the activation holds.

    >>> edit.save("edit.safetensors", lens)
    >>> with edited(lens, RankOneEdit.load("edit.safetensors", lens)):
    ...     recall(lens, prompts, tokens)
    """

    layer: int
    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)

    def save(self, path: Path | str, lens: LensModel) -> None:
        """Writes safetensors with the factors and the identity of the model that they are for.
        Raises `ResultError` where it cannot."""
        facts = {"layer": str(self.layer), "parameter": _down_projection(lens, self.layer).name}
        TensorFile(
            format=FORMAT,
            made_with=lens.identity,
            tensors={"a": self.a, "b": self.b},
            facts=facts,
        ).save(path)

    @classmethod
    def load(cls, path: Path | str, lens: LensModel) -> RankOneEdit:
        """Reads a file written by `save`. Raises `EditError` for a file that is damaged, or made
        for another model than `lens` as it is now: save and load outside of `edited`."""
        file = TensorFile.load(path, FORMAT, "an edit", EditError)
        file.made_with.require(lens.identity, str(path), MODEL, EditError)
        try:
            return cls(int(file.facts["layer"]), file.tensors["a"], file.tensors["b"])
        except (KeyError, ValueError) as error:
            raise EditError(f"{path} is damaged: {error}") from None


@dataclass(frozen=True, eq=False)
class _Weight:
    """The weight of a down-projection as it was, and what is in it now: the edits of each context
    that is open, in the order in which they were entered."""

    linear: Linear
    before: Tensor
    inside: dict[object, list[RankOneEdit]] = field(default_factory=dict)

    def write(self) -> None:
        weight = self.linear.module.get_parameter("weight").data
        weight.copy_(self.before)
        for edits in self.inside.values():
            for edit in edits:
                change = torch.outer(edit.a.double(), edit.b.double()).to(weight)
                weight.add_(change.T if self.linear.transposed else change)


_open: WeakKeyDictionary[nn.Module, _Weight] = WeakKeyDictionary()


@contextmanager
def edited(lens: LensModel, *edits: RankOneEdit) -> Iterator[None]:
    """The model's weights with the edits in them, and bit by bit as they were afterwards, in
    whatever order several of these are left. Other threads wait.

    Raises `EditError` for an edit of another shape, `SiteError` for a layer that the model lacks.

    >>> with edited(lens, edit):
    ...     lens.model.generate(**inputs)
    """
    by_layer: dict[int, list[RankOneEdit]] = {}
    for edit in edits:
        linear = _down_projection(lens, edit.layer)
        shape = tuple(linear.weight.shape)
        if (len(edit.a), len(edit.b)) != shape:
            raise EditError(
                f"an edit of {len(edit.a)} x {len(edit.b)} does not fit {linear.name}, "
                f"which is {shape[0]} x {shape[1]}"
            )
        by_layer.setdefault(edit.layer, []).append(edit)
    context = object()
    with exclusive(lens.model):
        weights = [_opened(_down_projection(lens, layer)) for layer in by_layer]
        try:
            for weight, its_edits in zip(weights, by_layer.values(), strict=True):
                weight.inside[context] = its_edits
                weight.write()
            yield
        finally:
            for weight in weights:
                weight.inside.pop(context, None)
                weight.write()
                if not weight.inside:
                    _open.pop(weight.linear.module, None)


def _opened(linear: Linear) -> _Weight:
    before = linear.module.get_parameter("weight").detach()
    if linear.module not in _open:
        _open[linear.module] = _Weight(linear, before.clone())
    return _open[linear.module]


@contextmanager
def edited_each(lens: LensModel, edits: Sequence[RankOneEdit]) -> Iterator[None]:
    """Row i of every batch sees edit i alone: many edits of one layer in one pass. The same
    numbers as `edited`, up to rounding, without touching a weight.

    Raises `EditError` if the edits are of no layer or of several.
    """
    layers = {edit.layer for edit in edits}
    if len(layers) != 1:
        raise EditError(f"edits of layers {sorted(layers)} in one batch: give one layer")
    module = _down_projection(lens, edits[0].layer).module
    a = torch.stack([edit.a for edit in edits])[:, None]
    b = torch.stack([edit.b for edit in edits])[..., None]
    inputs: list[Tensor] = []

    def add(out: Tensor) -> Tensor:
        x = inputs.pop()
        rows = x.reshape(len(edits), -1, x.shape[-1])
        change = (rows.to(b.dtype) @ b.to(x.device)) * a.to(x.device)
        return out + change.to(out).reshape(out.shape)

    with exclusive(lens.model), on_input(module, inputs.append), on_output(module, add):
        yield


def _down_projection(lens: LensModel, layer: int) -> Linear:
    """Raises `SiteError` where the model lacks it."""
    return lens.map.block(Site(layer, "mlp_act", "END")).down
