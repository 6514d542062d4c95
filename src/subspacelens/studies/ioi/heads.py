"""What single attention heads do at the last token: where they look and what they push.

A head's score of a token is its attention logit. Scores of two tokens in one row differ by the log
of the ratio of their attention, so the pattern alone says what is needed, for any architecture.
These are full passes: a replay may compute attention in a form that has no pattern to show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import ModelError
from ...core.site import Site
from ...engine.buckets import place_of
from ...measure.readers import ReaderShare
from ...model.hooks import at_columns, exclusive, on_input, on_output
from ...model.lens import LensModel
from ...model.norms import norm_gain
from ...tasks import PairSet

Head = tuple[int, int]
"""Layer and number of a head."""


@dataclass(frozen=True)
class Watched:
    """Every head at the last token, float64 (n, layers, heads) each: attention to IO and to S1, and
    direct logit attribution, the nats that the head's own output adds to logit(answer) -
    logit(target) with the final norm's scale held."""

    io: Tensor
    subject: Tensor
    attribution: Tensor

    @property
    def score(self) -> Tensor:
        """Score of IO minus score of S1."""
        return self.io.log() - self.subject.log()

    @property
    def attention(self) -> Tensor:
        """Attention to IO minus attention to S1."""
        return self.io - self.subject

    def heads(self) -> list[Head]:
        """Layer and number of every head, in the order of the flattened last two dimensions."""
        _, layers, heads = self.io.shape
        return [(layer, head) for layer in range(layers) for head in range(heads)]


def watch(lens: LensModel, pairs: PairSet, site: Site, delta: Tensor) -> Watched:
    """All heads while `delta` (n, dim) is added to the activation of the base prompts at `site`.

    Raises `ModelError` for a model that does not give its attention weights.
    """
    blocks = lens.map.blocks
    shape = len(pairs), len(blocks), blocks[0].n_heads
    io, subject, attribution = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for run in _runs(lens, pairs, {site: delta}):
            towards = _answer_direction(lens, run)
            for layer, block in enumerate(blocks):
                io[run.rows, layer] = run.looked_at(layer, run.columns("IO")).cpu().double()
                subject[run.rows, layer] = run.looked_at(layer, run.columns("S1")).cpu().double()
                read = towards @ block.out_proj.weight.to(towards)
                pushed = (run.outputs[layer].to(read) * read).unflatten(1, (shape[2], -1)).sum(-1)
                attribution[run.rows, layer] = pushed.cpu()
    return Watched(io, subject, attribution)


def score_gradients(
    lens: LensModel, pairs: PairSet, sites: Sequence[Site], heads: Sequence[Head]
) -> dict[Site, Tensor]:
    """∂(score of the first name - score of the second)/∂(base activation) of each head at the last
    token, float64 (heads, n, dim), at every site; 0 where the head is not behind the site."""
    added = {
        site: torch.zeros(len(pairs), lens.map.dim(site), dtype=lens.dtype, requires_grad=True)
        for site in sites
    }
    gradients = {
        site: torch.zeros(len(heads), *delta.shape, dtype=torch.float64)
        for site, delta in added.items()
    }
    for run in _runs(lens, pairs, added):
        for place, score in enumerate(_scores(run, heads)):
            if not score.requires_grad:
                continue
            grads = torch.autograd.grad(
                score, [*added.values()], retain_graph=True, materialize_grads=True
            )
            for site, grad in zip(sites, grads, strict=True):
                gradients[site][place] += grad.cpu().double()
    return gradients


def query_maps(
    lens: LensModel, pairs: PairSet, site: Site, heads: Sequence[Head]
) -> tuple[ReaderShare, ...]:
    """The query maps of heads, as readers of the residual stream at the last token.

    Which rows of a block's input maps make a head's query depends on the architecture. They are
    those that its score answers to at the last token, up to what rounding leaves of its own key.
    """
    delta = torch.zeros(1, lens.map.dim(site), dtype=lens.dtype, requires_grad=True)
    (run,) = _runs(lens, pairs[:1], {site: delta})
    shares = []
    for (layer, head), score in zip(heads, _scores(run, heads), strict=True):
        inputs = {key: y for key, y in run.read.items() if key[0] == layer}
        grads = torch.autograd.grad(score, [*inputs.values()], retain_graph=True, allow_unused=True)
        used = {
            key: grad.reshape(-1, grad.shape[-1])[-1].abs()
            for key, grad in zip(inputs, grads, strict=True)
            if grad is not None
        }
        (_, index), size = max(used.items(), key=lambda item: float(item[1].max()))
        rows = (size > 1e-3 * size.max()).nonzero()[:, 0]
        rows = slice(int(rows[0]), int(rows[-1]) + 1)
        reader = lens.map.blocks[layer].readers[index]
        shares.append(ReaderShare(f"L{layer}.head {head} queries", layer, reader, rows, 0.0))
    return tuple(shares)


@dataclass(frozen=True)
class _Run:
    """One full pass over base prompts of one length. `rows` (n,) are their places in the pair set;
    `patterns[layer]` (n, heads, T, T); `outputs[layer]` (n, width) what the output projection reads
    at the last token; `read[layer, reader]` what each attention reader gives; `hidden` (n, d) the
    last block's output at the last token."""

    rows: Tensor
    pairs: PairSet
    patterns: dict[int, Tensor]
    outputs: dict[int, Tensor]
    read: dict[tuple[int, int], Tensor]
    hidden: Tensor

    def columns(self, label: str) -> Tensor:
        return torch.tensor([pair.base.columns[label] for pair in self.pairs.pairs])

    def looked_at(self, layer: int, columns: Tensor) -> Tensor:
        """Attention of every head from the last token to one column a row, (n, heads)."""
        pattern = self.patterns[layer][:, :, -1]
        return pattern[torch.arange(len(columns)), :, columns.to(pattern.device)]


def _scores(run: _Run, heads: Sequence[Head]) -> Iterator[Tensor]:
    """Each head's score of the first name minus that of the second, summed over the pairs."""
    names = torch.stack([run.columns("IO"), run.columns("S1")])
    for layer, head in heads:
        first = run.looked_at(layer, names.min(0).values)[:, head]
        second = run.looked_at(layer, names.max(0).values)[:, head]
        yield (first.log() - second.log()).sum()


def _runs(lens: LensModel, pairs: PairSet, added: Mapping[Site, Tensor]) -> Iterator[_Run]:
    """A full pass for every length of base prompt, with `added[site]` (n, dim) at each site."""
    by_length: dict[int, list[int]] = {}
    for row, pair in enumerate(pairs.pairs):
        by_length.setdefault(len(pair.base.ids), []).append(row)
    for rows in by_length.values():
        chosen = PairSet(pairs.name, pairs.split, tuple(pairs.pairs[row] for row in rows))
        yield _run(lens, chosen, torch.tensor(rows), added)


def _run(lens: LensModel, pairs: PairSet, rows: Tensor, added: Mapping[Site, Tensor]) -> _Run:
    patterns, outputs, read, last = {}, {}, {}, {}
    count = len(pairs)

    def adding(site: Site, delta: Tensor) -> AbstractContextManager[None]:
        columns = torch.tensor([pair.base.columns[site.label] for pair in pairs.pairs])
        moved = delta[rows.to(delta.device)]
        return at_columns(*place_of(lens.map, site), columns, lambda x: x + moved.to(x))

    def keep(into: dict, key, column: bool = True):
        def hook(x: Tensor) -> None:
            into[key] = x.reshape(count, -1, x.shape[-1])[:, -1] if column else x

        return hook

    with exclusive(lens.model), _eager(lens), ExitStack() as stack:
        for site, delta in added.items():
            stack.enter_context(adding(site, delta))
        for layer, block in enumerate(lens.map.blocks):
            stack.enter_context(_pattern(lens, layer, patterns))
            stack.enter_context(on_input(block.out_proj.module, keep(outputs, layer)))
            for index, reader in enumerate(block.readers):
                if reader.attention:
                    hook = keep(read, (layer, index), column=False)
                    stack.enter_context(on_output(reader.linear.module, hook))
        stack.enter_context(on_output(lens.map.blocks[-1].module, keep(last, "hidden")))
        ids = torch.tensor([pair.base.ids for pair in pairs.pairs], device=lens.device)
        lens.map.inner(input_ids=ids, use_cache=False)
    return _Run(rows, pairs, patterns, outputs, read, last["hidden"])


@contextmanager
def _eager(lens: LensModel) -> Iterator[None]:
    """Attention computed in the form that shows its pattern."""
    before = lens.model.config._attn_implementation or "eager"
    try:
        if before != "eager":
            lens.model.set_attn_implementation("eager")
        yield
    finally:
        if before != "eager":
            lens.model.set_attn_implementation(before)


@contextmanager
def _pattern(lens: LensModel, layer: int, into: dict[int, Tensor]) -> Iterator[None]:
    """Keeps the attention weights (n, heads, T, T) of a block."""
    name = lens.map.blocks[layer].out_proj.name.rsplit(".", 1)[0]

    def hook(_module, _args, output) -> None:
        rest = output[1:] if isinstance(output, tuple) else ()
        weights = [x for x in rest if isinstance(x, Tensor) and x.ndim == 4]
        if not weights:
            raise ModelError(
                f"{name} does not give its attention weights, which this study needs to see"
            )
        into[layer] = weights[0]

    handle = lens.model.get_submodule(name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _answer_direction(lens: LensModel, run: _Run) -> Tensor:
    """What the last residual stream is projected on for logit(answer) - logit(target), the final
    norm's scale held, float64 (n, d)."""
    answers = torch.tensor([(pair.answer, pair.target) for pair in run.pairs.pairs])
    rows = lens.map.tail.head.weight[answers.to(lens.map.tail.head.weight.device)].double()
    towards, x = rows[:, 0] - rows[:, 1], run.hidden.double()
    for norm in lens.map.tail.norms:
        gain, centres = norm_gain(norm, x.shape[1])
        towards = towards * gain.to(towards)
        if centres:
            towards = towards - towards.mean(1, keepdim=True)
            x = x - x.mean(1, keepdim=True)
        towards = towards / x.pow(2).mean(1, keepdim=True).sqrt().to(towards)
    return towards
