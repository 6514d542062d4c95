"""Causal tracing (Meng et al. 2022): noise on the subject, one clean state put back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import EditError
from ..core.progress import track
from ..core.site import Site
from ..engine.activations import activations
from ..engine.buckets import place_of
from ..engine.capture import capture
from ..engine.passes import prompt_key
from ..engine.recall import recall
from ..engine.replay import Replay
from ..model.hooks import at_columns, on_output
from ..model.lens import LensModel
from ..tasks.facts import SUBJECT, SUBJECT_START
from ..tasks.pairset import Pair, PairSet, Prompt

PROMPTS = 16
"""Prompts whose passes are kept at a time."""


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
    return traces(lens, [prompt], [answer], layers, recipe=recipe, subject_only=subject_only)[0]


def traces(
    lens: LensModel,
    prompts: Sequence[Prompt],
    answers: Sequence[int],
    layers: Sequence[int],
    *,
    recipe: TraceRecipe | None = None,
    subject_only: bool = False,
) -> list[Trace]:
    """`trace` of each of many prompts, `PROMPTS` of them at a time.

    A state that is put back is a patch of the corrupted prompt: only later layers and columns are
    run again. Before the subject both are the same, and nothing is."""
    recipe = recipe or TraceRecipe()
    found: list[Trace] = []
    for start in track(range(0, len(prompts), PROMPTS), f"tracing {recipe.stream}"):
        part = slice(start, start + PROMPTS)
        found += _traced(lens, prompts[part], answers[part], layers, recipe, subject_only)
    return found


def _traced(
    lens: LensModel,
    prompts: Sequence[Prompt],
    answers: Sequence[int],
    layers: Sequence[int],
    recipe: TraceRecipe,
    subject_only: bool,
) -> list[Trace]:
    """A base prompt of the capture is a corrupted one, its source the same without noise. Label
    `c{i}` is the i-th column of a prompt that is asked for, from its end."""
    stream, blocks, samples = recipe.stream, range(len(lens.map.blocks)), recipe.samples
    around = range(-(recipe.window // 2), recipe.window - recipe.window // 2)
    windows = {layer: [layer + d for d in around if layer + d in blocks] for layer in layers}
    asked = [_asked(prompt, subject_only) for prompt in prompts]
    labels = [f"c{place}" for place in range(max(map(len, asked)))]
    pairs, noise = _corrupted(lens, prompts, answers, asked, labels, recipe)

    def blurring(batch: Sequence[Prompt]) -> AbstractContextManager[None]:
        rows = [noise[prompt_key(prompt)] for prompt in batch]
        wide = max(map(len, rows))
        added = torch.stack([pad(row, (0, 0, wide - len(row), 0)) for row in rows])
        return on_output(lens.model.get_input_embeddings(), lambda x: x + added.to(x))

    begin = dict.fromkeys(window[0] for window in windows.values())
    sites = [Site(layer, stream, label) for layer in begin for label in labels]
    captured = capture(lens, PairSet("tracing", stream, tuple(pairs)), sites, around=blurring)
    later = dict.fromkeys(layer for window in windows.values() for layer in window[1:])
    sites = [Site(layer, stream, label) for layer in later for label in labels]
    states = activations(lens, [pair.source for pair in pairs], sites) if sites else {}
    last = captured.at(Site(max(begin), stream, labels[0]))
    corrupted = _probabilities(last, 0 * last.difference, {}).view(-1, samples).mean(1)
    clean = recall(lens, prompts, torch.tensor(answers)[:, None], "clean").probs[:, 0]
    restored = [
        torch.full((len(layers), len(prompt.ids)), torch.nan if subject_only else float(value))
        for prompt, value in zip(prompts, corrupted, strict=True)
    ]
    for i, label in enumerate(labels):
        here = [number for number, columns in enumerate(asked) if i < len(columns)]
        rows = torch.arange(len(pairs)).view(-1, samples)[here].flatten()
        for row, layer in enumerate(layers):
            first, *rest = windows[layer]
            replay = captured.at(Site(first, stream, label)).subset(rows)
            held = {x: states[Site(x, stream, label)][rows] for x in rest}
            values = _probabilities(replay, replay.difference, held).view(-1, samples).mean(1)
            for number, value in zip(here, values, strict=True):
                restored[number][row, asked[number][i]] = value
    return [
        Trace(prompt, tuple(layers), float(clean[i]), float(corrupted[i]), restored[i])
        for i, prompt in enumerate(prompts)
    ]


def _corrupted(
    lens: LensModel,
    prompts: Sequence[Prompt],
    answers: Sequence[int],
    asked: Sequence[Sequence[int]],
    labels: Sequence[str],
    recipe: TraceRecipe,
) -> tuple[list[Pair], dict[Hashable, Tensor]]:
    """For each prompt a pair a sample, and what is added to the embeddings of its base, by
    `prompt_key`. A label beyond the columns that are asked for falls on the last of them."""
    noise: dict[Hashable, Tensor] = {}
    pairs: list[Pair] = []
    for prompt, answer, columns in zip(prompts, answers, asked, strict=True):
        at = {label: columns[min(i, len(columns) - 1)] for i, label in enumerate(labels)}
        clean = replace(prompt, columns={**at, "END": len(prompt.ids) - 1})
        for sample, added in enumerate(_noise(lens, prompt, recipe)):
            noisy = replace(clean, columns={**clean.columns, f"sample {sample}": 0})
            noise[prompt_key(noisy)] = added
            pairs.append(Pair(base=noisy, source=clean, answer=answer, target=answer))
    return pairs, noise


def _asked(prompt: Prompt, subject_only: bool) -> list[int]:
    """The columns whose states are put back, last first: from the subject on, or its last alone."""
    if subject_only:
        return [prompt.columns[SUBJECT]]
    return list(range(len(prompt.ids) - 1, prompt.columns[SUBJECT_START] - 1, -1))


def _noise(lens: LensModel, prompt: Prompt, recipe: TraceRecipe) -> Tensor:
    """(samples, columns, d_model), zero off the subject."""
    weight = lens.model.get_input_embeddings().get_parameter("weight")
    generator = torch.Generator().manual_seed(recipe.seed)
    noise = torch.zeros(recipe.samples, len(prompt.ids), weight.shape[1])
    subject = slice(prompt.columns[SUBJECT_START], prompt.columns[SUBJECT] + 1)
    drawn = torch.randn(noise[:, subject].shape, generator=generator)
    noise[:, subject] = drawn * recipe.noise * float(weight.float().std())
    return noise.to(weight)


def _probabilities(replay: Replay, delta: Tensor, held: Mapping[int, Tensor]) -> Tensor:
    """Probability of each pair's answer (n,) when `delta` (n, dim) is added, and the stream of
    later layers at the same column is `held[layer]` (n, dim). Of the last block only what the last
    column sees of itself can matter."""
    found = torch.empty(len(replay.pairs))
    final = len(replay.lens.map.blocks) - 1
    with torch.no_grad():
        for piece in replay.pieces(gradients=False):
            first = torch.zeros(len(piece.pairs), dtype=torch.long)
            with ExitStack() as stack:
                for layer, states in held.items():
                    if layer == final and piece.bucket.suffix > 1:
                        continue
                    place, module = place_of(replay.lens.map, replace(replay.site, layer=layer))
                    kept = states[piece.pairs.to(states.device)]
                    stack.enter_context(at_columns(place, module, first, lambda _, kept=kept: kept))
                logits = piece.logits(piece.of(delta[None]))[0].float()
            answers = piece.answers[:, :1].to(logits.device)
            found[piece.pairs] = logits.softmax(-1).gather(1, answers)[:, 0].cpu()
    return found
