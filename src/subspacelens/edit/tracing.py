"""Causal tracing (Meng et al. 2022): noise on the subject, one clean state put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import EditError
from ..core.site import Site
from ..engine.buckets import place_of
from ..model.hooks import at_columns, check_ready, exclusive, on_output
from ..model.lens import LensModel
from ..tasks.facts import SUBJECT, SUBJECT_START
from ..tasks.pairset import Prompt

COLUMNS = 4096
"""Columns in one batch."""


@dataclass(frozen=True)
class TraceRecipe:
    """`samples` draws of Gaussian noise, `noise` times the standard deviation of the token
    embeddings, are added to the subject's embeddings. `window` layers around each are restored at
    once (1: that layer alone)."""

    stream: str = "resid_post"
    samples: int = 3
    noise: float = 3.0
    window: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stream not in ("resid_post", "mlp_out", "attn_out"):
            raise EditError(f"tracing restores resid_post, mlp_out or attn_out, not {self.stream}")
        if self.samples < 1 or self.window < 1:
            raise EditError(f"{self}: give at least one sample, and a window of at least 1")


@dataclass(frozen=True, eq=False)
class Trace:
    """Probabilities of the answer, mean over noise: `clean`, `corrupted`, and `restored`
    (layers, columns) with the state of that layer and column put back."""

    prompt: Prompt
    layers: tuple[int, ...]
    clean: float
    corrupted: float
    restored: Tensor = field(repr=False)

    @property
    def effect(self) -> Tensor:
        """What putting a state back brings back, (layers, columns): the indirect effect."""
        return self.restored - self.corrupted

    @property
    def at_subject(self) -> Tensor:
        """The effect at the subject's last token, (layers,)."""
        return self.effect[:, self.prompt.columns[SUBJECT]]

    @property
    def roles(self) -> tuple[str, ...]:
        """Of each column: before, in or after the subject."""
        first, last = (self.prompt.columns[label] for label in (SUBJECT_START, SUBJECT))
        end = len(self.prompt.ids) - 1
        return tuple(role_of(column, first, last, end) for column in range(end + 1))


ROLES = ("before", "first subject", "inside subject", "last subject", "next", "later", "last token")


def role_of(column: int, first: int, last: int, end: int) -> str:
    """Where a column stands to a subject in columns `first` to `last` of a prompt to `end`."""
    if column == end:
        return "last token"
    if column < first:
        return "before"
    if column <= last:
        return (
            "last subject"
            if column == last
            else ("first subject" if column == first else "inside subject")
        )
    return "next" if column == last + 1 else "later"


def trace(
    lens: LensModel,
    prompt: Prompt,
    answer: int,
    layers: Sequence[int],
    *,
    recipe: TraceRecipe | None = None,
    subject_only: bool = False,
) -> Trace:
    """The layer × token map of one prompt, or its column at the subject's last token alone (the
    others are NaN). Raises `SiteError` where the model lacks the stream."""
    recipe = recipe or TraceRecipe()
    columns = len(prompt.ids)
    around = range(-(recipe.window // 2), recipe.window - recipe.window // 2)
    depth = len(lens.map.blocks)
    needed = sorted({x + d for x in layers for d in around if 0 <= x + d < depth})
    states, clean = _clean(lens, prompt, answer, needed, recipe.stream)
    noise = _noise(lens, prompt, recipe)
    asked = [prompt.columns[SUBJECT]] if subject_only else list(range(columns))
    cells = [(-1, -1), *((layer, column) for layer in layers for column in asked)]
    rows = [(sample, *cell) for cell in cells for sample in range(recipe.samples)]
    probabilities: list[Tensor] = []
    size = max(1, COLUMNS // columns)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        probabilities.append(_run(lens, prompt, answer, batch, noise, states, around))
    means = torch.cat(probabilities).view(len(cells), recipe.samples).mean(1)
    restored = torch.full((len(layers), columns), torch.nan)
    restored[:, asked] = means[1:].view(len(layers), -1)
    return Trace(prompt, tuple(layers), clean, float(means[0]), restored)


@dataclass(frozen=True)
class _States:
    stream: str
    of: dict[int, Tensor]


def _clean(
    lens: LensModel, prompt: Prompt, answer: int, layers: Sequence[int], stream: str
) -> tuple[_States, float]:
    states: dict[int, Tensor] = {}
    with exclusive(lens.model), torch.no_grad(), ExitStack() as stack:
        check_ready(lens.model)
        for layer in layers:
            site = Site(layer, stream, "END")
            lens.map.block(site)
            place, module = place_of(lens.map, site)

            def keep(x: Tensor, layer: int = layer) -> None:
                states[layer] = x.reshape(-1, x.shape[-1]).clone()

            stack.enter_context(place(module, keep))
        ids = torch.tensor([prompt.ids], device=lens.device)
        logits = lens.model(input_ids=ids, use_cache=False).logits[0, -1]
    return _States(stream, states), float(logits.float().softmax(-1)[answer])


def _noise(lens: LensModel, prompt: Prompt, recipe: TraceRecipe) -> Tensor:
    """(samples, columns, d_model), zero off the subject."""
    weight = lens.model.get_input_embeddings().get_parameter("weight")
    generator = torch.Generator().manual_seed(recipe.seed)
    noise = torch.zeros(recipe.samples, len(prompt.ids), weight.shape[1])
    subject = slice(prompt.columns[SUBJECT_START], prompt.columns[SUBJECT] + 1)
    drawn = torch.randn(noise[:, subject].shape, generator=generator)
    noise[:, subject] = drawn * recipe.noise * float(weight.float().std())
    return noise.to(weight)


def _run(
    lens: LensModel,
    prompt: Prompt,
    answer: int,
    rows: Sequence[tuple[int, int, int]],
    noise: Tensor,
    states: _States,
    around: range,
) -> Tensor:
    """Probability of the answer for each row (noise sample, layer, column), layer -1: none."""
    samples, centres, columns = torch.tensor(rows).unbind(1)

    def put_back(layer: int) -> Callable[[Tensor], Tensor]:
        here = (centres >= 0) & torch.isin(layer - centres, torch.tensor(around))
        clean = states.of[layer][columns.clamp(min=0)]
        return lambda x: torch.where(here.to(x.device)[:, None], clean.to(x), x)

    with exclusive(lens.model), torch.no_grad(), ExitStack() as stack:
        embedding = lens.model.get_input_embeddings()
        noisy = noise[samples.to(noise.device)]
        stack.enter_context(on_output(embedding, lambda x: x + noisy.to(x)))
        for layer in states.of:
            place, module = place_of(lens.map, Site(layer, states.stream, "END"))
            context = at_columns(place, module, columns.clamp(min=0), put_back(layer))
            stack.enter_context(context)
        ids = torch.tensor([prompt.ids], device=lens.device).expand(len(rows), -1)
        logits = lens.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.float().softmax(-1)[:, answer].cpu()
