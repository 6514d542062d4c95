"""What single attention heads do at the last token: where they look and what they push.

A head's score of a token is its attention logit. Scores of two tokens in one row differ by the log
of the ratio of their attention, so the pattern alone says what is needed, for any architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..audit.decomposition import ReaderShare, norm_gain
from ..capture import Capture
from ..errors import ModelError
from ..hooks import on_input, on_output
from ..model import LensModel
from ..replay import Replay, Unit
from ..site import Site

Head = tuple[int, int]
"""Layer and number of a head."""


@dataclass(frozen=True)
class Watched:
    """The heads of `layers` at the last token, float64 (n, layers, heads) each: attention to IO and
    to S1, and direct logit attribution, the nats that the head's own output adds to logit(answer) -
    logit(target) with the final norm's scale held."""

    layers: tuple[int, ...]
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
        """Every head, in the order of the flattened last two dimensions."""
        return [(layer, head) for layer in self.layers for head in range(self.io.shape[2])]


def watch(
    lens: LensModel, captured: Capture, site: Site, delta: Tensor, *, memory: int | None = None
) -> Watched:
    """The heads of all blocks after the site while `delta` (n, dim) is added to its activation.

    Raises `ModelError` for a model that does not give its attention weights.
    """
    first = Replay(lens, captured, site).entry[1]
    layers = tuple(range(first, len(lens.map.blocks)))
    shape = len(captured.pairs), len(layers), lens.map.blocks[0].n_heads
    io, subject, attribution = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    with torch.no_grad(), _open(lens, captured, site, memory) as replay, ExitStack() as stack:
        patterns, outputs = {}, {}
        for layer in layers:
            block = lens.map.blocks[layer]
            stack.enter_context(_seeing_pattern(lens, layer, patterns))
            stack.enter_context(on_input(block.out_proj.module, _keep(outputs, layer)))
        for unit in replay.units(gradients=False):
            hidden = replay.hidden(unit, delta[unit.pairs.to(delta.device)][None])[0]
            towards = _answer_direction(lens, hidden, replay.answers[unit.pairs])
            at = _columns(replay, unit, "IO"), _columns(replay, unit, "S1")
            for place, layer in enumerate(layers):
                io[unit.pairs, place], subject[unit.pairs, place] = (
                    _picked(patterns[layer], column).cpu().double() for column in at
                )
                z = outputs[layer].reshape(len(hidden), -1, outputs[layer].shape[-1])[:, -1]
                read = towards @ lens.map.blocks[layer].out_proj.weight.to(towards)
                each = (z.double() * read).unflatten(1, (shape[2], -1)).sum(-1)
                attribution[unit.pairs, place] = each.cpu()
    return Watched(layers, io, subject, attribution)


def score_gradients(
    lens: LensModel,
    captured: Capture,
    site: Site,
    heads: Sequence[Head],
    *,
    memory: int | None = None,
) -> tuple[Tensor, tuple[ReaderShare, ...]]:
    """∂(score of the first name - score of the second)/∂(activation), float64 (heads, n, dim), and
    the query maps of the heads as readers of the site, which must be the residual stream at END.

    The rows of a block's input maps that make a head's query are those that its score answers to.
    """
    found = torch.zeros(len(heads), *captured.base[site].shape, dtype=torch.float64)
    answering: dict[tuple[Head, int], Tensor] = {}
    with _open(lens, captured, site, memory) as replay, ExitStack() as stack:
        patterns, read = {}, {}
        for layer in {layer for layer, _ in heads}:
            stack.enter_context(_seeing_pattern(lens, layer, patterns))
            for index, reader in enumerate(lens.map.blocks[layer].readers):
                if reader.attention:
                    keep = _keep(read, (layer, index))
                    stack.enter_context(on_output(reader.linear.module, keep))
        for unit in replay.units():
            delta = captured.base[site].new_zeros(1, len(unit.pairs), found.shape[2])
            delta.requires_grad_(True)
            replay.hidden(unit, delta)
            names = torch.stack([_columns(replay, unit, label) for label in ("IO", "S1")])
            first, second = names.min(0).values, names.max(0).values
            for place, (layer, head) in enumerate(heads):
                pattern = patterns[layer].log()
                score = (_picked(pattern, first) - _picked(pattern, second))[:, head].sum()
                inputs = {key: y for key, y in read.items() if key[0] == layer}
                grads = torch.autograd.grad(
                    score, [delta, *inputs.values()], retain_graph=True, allow_unused=True
                )
                found[place, unit.pairs] = grads[0][0].cpu().double()
                for (_, index), grad in zip(inputs, grads[1:], strict=True):
                    if grad is not None:
                        size = grad.abs().reshape(-1, grad.shape[-1]).sum(0).cpu()
                        key = (layer, head), index
                        answering[key] = answering.get(key, torch.zeros_like(size)) + size
    shares = []
    for ((layer, head), index), size in answering.items():
        rows = size.nonzero()[:, 0]
        if len(rows):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
            reader = lens.map.blocks[layer].readers[index]
            shares.append(ReaderShare(f"L{layer} head {head}", layer, reader, rows, 0.0))
    return found, tuple(shares)


@contextmanager
def _open(lens: LensModel, captured: Capture, site: Site, memory: int | None) -> Iterator[Replay]:
    """A replay in which attention is computed so that its weights can be seen."""
    before = lens.model.config._attn_implementation
    try:
        if before != "eager":
            lens.model.set_attn_implementation("eager")
        yield Replay(lens, captured, site, memory=memory)
    finally:
        if before != "eager":
            lens.model.set_attn_implementation(before)


def _seeing_pattern(lens: LensModel, layer: int, into: dict[int, Tensor]):
    """Keeps the attention weights (rows, heads, queries, keys) of a block."""
    name = lens.map.blocks[layer].out_proj.name.rsplit(".", 1)[0]
    return _on_whole_output(lens.model.get_submodule(name), name, layer, into)


@contextmanager
def _on_whole_output(module: nn.Module, name: str, layer: int, into: dict) -> Iterator[None]:
    def hook(_module, _args, output) -> None:
        heads = lens_heads(output)
        if not heads:
            raise ModelError(
                f"{name} does not give its attention weights, which this study needs to see"
            )
        into[layer] = heads[0]

    def lens_heads(output) -> list[Tensor]:
        rest = output[1:] if isinstance(output, tuple) else ()
        return [x for x in rest if isinstance(x, Tensor) and x.ndim == 4]

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _keep(into: dict, key):
    def seen(x: Tensor) -> None:
        into[key] = x

    return seen


def _columns(replay: Replay, unit: Unit, label: str) -> Tensor:
    """Where the label stands among the keys that a unit's last column sees, counted from the end,
    (n,)."""
    pairs = [replay.captured.pairs.pairs[i].base for i in unit.pairs.tolist()]
    return torch.tensor([prompt.columns[label] - len(prompt.ids) for prompt in pairs])


def _picked(pattern: Tensor, columns: Tensor) -> Tensor:
    """Pattern (n, heads, queries, keys) from the last query to one key a row, (n, heads)."""
    index = (columns + pattern.shape[-1]).to(pattern.device)
    return pattern[:, :, -1][torch.arange(len(index)), :, index]


def _answer_direction(lens: LensModel, hidden: Tensor, answers: Tensor) -> Tensor:
    """What the last residual stream (n, d) is projected on for logit(answer) - logit(target) with
    the final norm's scale held, float64 (n, d)."""
    rows = lens.map.tail.head.weight[answers.to(lens.map.tail.head.weight.device)].double()
    towards = (rows[:, 0] - rows[:, 1]).to(hidden.device)
    x = hidden.double()
    for norm in lens.map.tail.norms:
        gain, centres = norm_gain(norm, x.shape[1])
        towards = towards * gain.to(towards)
        if centres:
            towards = towards - towards.mean(1, keepdim=True)
            x = x - x.mean(1, keepdim=True)
        towards = towards / x.pow(2).mean(1, keepdim=True).sqrt()
    return towards
