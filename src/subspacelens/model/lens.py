"""A causal language model, its tokenizer, and the map of its parts."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..core.errors import ModelError
from ..core.identity import Identity, identity_of, weights_sha256
from .hooks import exclusive
from .mapping.values import ModelMap
from .plain_weights import mapped


@dataclass(frozen=True, eq=False)
class LensModel:
    """A causal language model as Transformers made it, its tokenizer, and the map of its parts.

    >>> lens = load_model("smollm2")
    >>> len(lens.map.blocks), lens.map.d_model
    (30, 576)
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    id: str
    map: ModelMap

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.model.get_input_embeddings().parameters()).device

    @property
    def identity(self) -> Identity:
        """Which model this is, as it is now: what subspaces, edits, captures and records are bound
        to. Read anew each time, at about the cost of reading the weights once, while no other
        thread uses the model; but only once inside `unchanged`."""
        held = _held.get().get(self)
        if held is not None:
            return held
        with exclusive(self.model):
            return identity_of(self.model, self.id)

    @property
    def weights_sha256(self) -> str:
        """Hash over names, shapes, dtypes and bytes of all parameters, as they are now."""
        held = _held.get().get(self)
        return weights_sha256(self.model) if held is None else held.weights

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in self.map.streams.items())
        return f"<b>{html.escape(self.id)}</b> ({self.dtype}) <table>{rows}</table>"


_held: ContextVar[Mapping[LensModel, Identity]] = ContextVar("held", default=MappingProxyType({}))


@contextmanager
def unchanged(lens: LensModel) -> Iterator[None]:
    """For work that is one whole: the model's identity is what it was when this was entered, and is
    not read again in this thread. What changes the model for good has no place inside.

    >>> with unchanged(lens):
    ...     audits = [audit(lens, captures, subspace) for subspace in subspaces]
    """
    token = _held.set({**_held.get(), lens: lens.identity})
    try:
        yield
    finally:
        _held.reset(token)


def wrap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, id: str | None = None
) -> LensModel:
    """A `LensModel` around a model that is already loaded, in any dtype. It is not changed.

    Raises `ModelError` if it is in training mode, has adapters that are not merged, or its parts
    cannot be found. Where weights are quantised, those streams can be used whose own projection is
    still a matrix.

    >>> lens = wrap(model.eval(), tokenizer)  # of your own, with its own hooks
    >>> lens = wrap(peft_model.merge_and_unload().eval(), tokenizer)
    """
    if model.training:
        raise ModelError("the model is in training mode: call model.eval() first")
    return LensModel(model, tokenizer, id or str(model.config.name_or_path), mapped(model))
