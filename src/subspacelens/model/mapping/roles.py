"""The parts of one block: found in the recording of a pass, and proven by small interventions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.errors import ModelError
from ...core.site import EXPERT, PROJECTED
from ..hooks import Place, muted, on_input, on_output
from .attention import find_heads
from .experts import find_experts
from .recording import Call, Recording, same
from .running import BlockRun
from .values import Block, Linear, Reader
from .ways import After, Before, Between, Inside, Routed, Way, Within


@dataclass(frozen=True, eq=False, kw_only=True)
class _Pass:
    """One block in the recorded pass: `x` (1, columns, d_model) enters it, `y` leaves it; the calls
    `within` it, in order, are those of its `attention` and `others`."""

    recording: Recording
    module: nn.Module
    x: Tensor
    y: Tensor
    within: tuple[Call, ...]
    attention: tuple[Call, ...]
    others: tuple[Call, ...]

    @classmethod
    def of(cls, recording: Recording, module: nn.Module) -> _Pass:
        own = recording.last_calls[id(module)]
        within = recording.inside(module)
        writers = (c for c in within if c.parents[-1] is module and c.wrote_cache)
        attention = next(writers, None)
        if attention is None:
            name = recording.names[id(module)]
            raise ModelError(f"{name}: no attention child that writes keys and values was found")
        inner = recording.inside(attention.module)
        theirs = {id(call) for call in (attention, *inner)}
        others = tuple(
            c for c in within if id(c) not in theirs and c.module is not attention.module
        )
        return cls(
            recording=recording, module=module, x=own.x, y=own.y, within=within, attention=inner,
            others=others,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return self.recording.names[id(self.module)]

    @property
    def d_model(self) -> int:
        return self.x.shape[-1]

    def fits(self, call: Call) -> bool:
        """Whether a call reads as many numbers as the residual stream has."""
        return call.x.numel() == self.x.numel() and call.x.shape[-1] == self.d_model

    def writers(self, calls: tuple[Call, ...]) -> list[tuple[Call, Linear]]:
        """Linear maps to the width of the residual stream, in order."""
        pairs = ((call, self.recording.linear(call)) for call in calls)
        return [(c, lin) for c, lin in pairs if lin and lin.weight.shape[0] == self.d_model]


@dataclass(frozen=True, eq=False)
class _Middle:
    """The residual stream between attention and MLP: its first reader, and its values."""

    reader: nn.Module
    x: Tensor


def find_roles(recording: Recording, module: nn.Module, run: BlockRun, heads: int) -> Block:
    """The parts of one block. Streams that it lacks, or that cannot be proven, are in `missing`.

    Raises `ModelError` for a block without an attention that has a linear output projection.
    """
    block = _Pass.of(recording, module)
    outs = block.writers(block.attention)
    if not outs:
        raise ModelError(f"{block.name}: no linear output projection was found in its attention")
    out_call, out_proj = outs[-1]
    down_proj, reason = _down_projection(block, out_proj, run)
    middle = _middle(block, out_call, out_proj, run)
    entries: dict[str, Way] = {"resid_pre": Before(), "resid_post": After()}
    missing: dict[str, str] = {}
    if middle is None:
        missing["resid_mid"] = f"{block.name} has no residual stream between attention and MLP"
    else:
        entries["resid_mid"] = Between()
    for stream in ("attn_out", "head_z"):
        entries[stream] = _entry(block, middle, out_proj, stream, run)
    experts = None
    mixture = _mixture(block, middle, out_proj, run) if down_proj is None else None
    if down_proj is not None:
        for stream in ("mlp_act", "mlp_out"):
            entries[stream] = _entry(block, middle, down_proj, stream, run)
    elif mixture is not None:
        missing["mlp_act"] = reason
        entries["mlp_out"] = After()
        experts = find_experts(mixture, block.x, run)
        if experts is not None:
            entries[EXPERT] = Routed()
        else:
            missing[EXPERT] = (
                f"{block.name}: what its experts compute could not be shown: their weights are not "
                "stacked as gate_up_proj and down_proj, or more is done to them"
            )
    else:
        missing |= dict.fromkeys(("mlp_act", "mlp_out"), reason)
    readers = tuple(_readers(block, middle, out_proj))
    made_by = [reader.linear for reader in readers if reader.attention]
    projected = find_heads(block.x, made_by, out_proj, run, heads)
    if projected is None:
        reason = (
            f"{block.name}: its queries, keys and values were not found in "
            f"{', '.join(linear.name for linear in made_by) or 'a projection of the stream'}"
        )
        missing |= dict.fromkeys(PROJECTED, reason)
    else:
        entries |= dict.fromkeys(PROJECTED, Inside())
    return Block(
        module=module,
        out_proj=out_proj,
        down_proj=down_proj,
        mixture=mixture,
        experts=experts,
        mid_reader=middle and middle.reader,
        readers=readers,
        n_heads=heads if out_proj.weight.shape[1] % heads == 0 else 1,
        projected=projected or {},
        entries=entries,
        missing=missing,
    )


def _down_projection(block: _Pass, out_proj: Linear, run: BlockRun) -> tuple[Linear | None, str]:
    """The last linear map of the MLP, if with it and attention muted the block is the identity;
    else None and why."""
    columns = block.x.shape[:-1].numel()
    for call, linear in reversed(block.writers(block.others)):
        if call.x.shape[:-1].numel() == columns:
            with muted(out_proj.module, linear.module):
                identity = run(block.x)
            if same(identity, block.x):
                return linear, ""
            return None, (
                f"{block.name}: with attention and {linear.name} muted the block is not the "
                "identity, so they are not its only writers"
            )
    return None, f"{block.name} has no single down-projection (a mixture of experts?)"


def _mixture(
    block: _Pass, middle: _Middle | None, out_proj: Linear, run: BlockRun
) -> nn.Module | None:
    """The part of a block that holds its experts: with attention and it muted the block is the
    identity, and a change of its output is one of what leaves the block. None where there is no
    such part."""
    for call in block.others:
        module = call.module
        is_part = call.parents[-1] is block.module and next(module.children(), None) is not None
        if not is_part or call.output is None or call.output.numel() != block.x.numel():
            continue
        with muted(out_proj.module, module):
            identity = run(block.x)
        if same(identity, block.x) and _adds(block, middle, module, run):
            return module
    return None


def _middle(block: _Pass, out_call: Call, out_proj: Linear, run: BlockRun) -> _Middle | None:
    """What the first module after attention reads, if the block gives the same output from it, with
    attention muted, as from its own input."""
    after = block.recording.place(out_call)
    for call in block.others:
        if block.recording.place(call) <= after or not block.fits(call):
            continue
        x = call.x.reshape(block.x.shape)
        if not same(x, block.x, 1e-6):
            with muted(out_proj.module):
                candidate = run(x)
            if same(candidate, block.y):
                return _Middle(call.module, x)
    return None


def _entry(block: _Pass, middle: _Middle | None, linear: Linear, stream: str, run: BlockRun) -> Way:
    """How a change of what `linear` reads (mlp_act, head_z) or writes enters the residual stream:
    as it is after the block, as it is in the middle, or otherwise (a norm follows)."""
    inside = stream in ("mlp_act", "head_z")
    change = _small(block, linear.weight.shape[1] if inside else block.d_model)
    written = linear.weight @ change if inside else change
    place = (on_input if inside else on_output), linear.module
    moved = _moved(block, middle, place, change, written, run)
    for is_moved, way in zip(moved, (After(), Between()), strict=False):
        if is_moved:
            return way
    return Within()


def _adds(block: _Pass, middle: _Middle | None, module: nn.Module, run: BlockRun) -> bool:
    """Whether a change of a module's output is the same change of what leaves the block."""
    change = _small(block, block.d_model)
    return _moved(block, middle, (on_output, module), change, change, run)[0]


def _small(block: _Pass, width: int) -> Tensor:
    change = torch.randn(width, generator=torch.Generator().manual_seed(1))
    return change.to(block.x) * block.x.std()


def _moved(
    block: _Pass,
    middle: _Middle | None,
    place: tuple[Place, nn.Module],
    change: Tensor,
    written: Tensor,
    run: BlockRun,
) -> list[bool]:
    """Whether `change` at a place moves what leaves the block, and what is in its middle, by
    `written`."""
    where, module = place
    before = _run_and_read(block, middle, run)
    with where(module, lambda x: x + change):
        after = _run_and_read(block, middle, run)
    tolerance = 2e-3 if block.x.dtype in (torch.float32, torch.float64) else 5e-2
    return [
        same(a - b, written.expand_as(b), tolerance) for a, b in zip(after, before, strict=True)
    ]


def _run_and_read(block: _Pass, middle: _Middle | None, run: BlockRun) -> list[Tensor]:
    """What leaves the block and, if it has a middle, what is there."""
    if middle is None:
        return [run(block.x)]
    read: list[Tensor] = []
    with on_input(middle.reader, read.append):
        y = run(block.x)
    return [y, read[0].reshape(block.x.shape)]


def _readers(block: _Pass, middle: _Middle | None, out_proj: Linear) -> Iterator[Reader]:
    """Linear maps whose input is the residual stream or a norm of it."""
    streams = [(block.x, False)] + ([(middle.x, True)] if middle else [])
    in_attention = {id(call) for call in block.attention}
    for call in block.within:
        if call.module is out_proj.module or not block.fits(call):
            continue
        linear = block.recording.linear(call)
        if linear is None:
            continue
        x = call.x.reshape(block.x.shape)
        norms = [other for other in block.within if _gives(block, other, x) and other is not call]
        for stream, is_mid in streams:
            norm = next((n for n in norms if _reads(block, n, stream)), None)
            raw = same(x, stream, 1e-6)
            if raw or norm is not None:
                module = None if raw or norm is None else norm.module
                yield Reader(linear, module, is_mid, id(call) in in_attention)
                break


def _gives(block: _Pass, call: Call, x: Tensor) -> bool:
    y = call.output
    return y is not None and y.numel() == x.numel() and same(y.reshape(block.x.shape), x, 1e-6)


def _reads(block: _Pass, call: Call, x: Tensor) -> bool:
    fits = call.x.numel() == block.x.numel()
    return fits and same(call.x.reshape(block.x.shape), x, 1e-6)
