"""Finds the parts of a causal language model by watching it run, and proves what it found.

No table of class names: blocks are the modules in which the key-value cache is written, the
attention is the child that writes it, projections are the last linear maps of either branch. Each
role is then proven on a small forward pass (`spec`: the identity of a block whose two branches are
muted, the additivity of a projection, the final chain from the last block to the logits). What
cannot be proven is left out, with the reason, and refused by name when asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from .errors import ModelError, SiteError
from .hooks import first_tensor, muted, on_input, on_output
from .site import Site

_TOKENS = 6


@dataclass(frozen=True)
class Linear:
    """A linear map of the model: `module` computes W x + b; `weight` is W, shape (out, in)."""

    name: str
    module: nn.Module
    transposed: bool

    @property
    def weight(self) -> Tensor:
        weight = self.module.get_parameter("weight").detach()
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class Reader:
    """A linear map that reads the residual stream at its own column: `linear` after `norm` (None
    where it reads the raw stream), before (`mid` False) or after (`mid` True) the attention of its
    block. `attention`: it makes queries, keys or values; else it belongs to the MLP."""

    linear: Linear
    norm: nn.Module | None
    mid: bool
    attention: bool


@dataclass(frozen=True)
class Block:
    """One transformer block. `entries` maps each stream that was proven to the way a change of it
    enters the replay (see `Entry`); `missing` maps the others to the reason."""

    module: nn.Module
    out_proj: Linear
    down_proj: Linear | None
    mid_reader: nn.Module | None
    readers: tuple[Reader, ...]
    n_heads: int
    entries: dict[str, str]
    missing: dict[str, str]


@dataclass(frozen=True)
class Tail:
    """From the last block's output to the logits: `norms` in order, the unembedding, and the
    elementwise `finish` (identity, a scale or a soft cap) that the model applies to its logits."""

    norms: tuple[nn.Module, ...]
    head: Linear
    finish: Callable[[Tensor], Tensor]

    def normed(self, hidden: Tensor) -> Tensor:
        """(..., d) last block output to (..., d) what the unembedding reads."""
        for norm in self.norms:
            hidden = norm(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) to (..., vocabulary), in nats."""
        return self.finish(self.head.module(self.normed(hidden)))

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of few tokens only: hidden (..., n, d), tokens (n, m) ids, result (..., n, m)."""
        normed = self.normed(hidden)
        rows = self.head.weight[tokens.to(self.head.weight.device)]
        logits = torch.einsum("...nd,nmd->...nm", normed, rows.to(normed.device))
        bias = getattr(self.head.module, "bias", None)
        if bias is not None:
            logits = logits + bias.detach()[tokens]
        return self.finish(logits)


@dataclass(frozen=True)
class ModelMap:
    """Where everything is. `inner` is the module that holds the blocks and is called with
    `inputs_embeds`; `accepts_positions` says whether it takes `position_ids`. `pads` says whether
    padding on the left was proven to change nothing; where it was not, only prompts of equal length
    share a batch."""

    inner: nn.Module
    blocks: tuple[Block, ...]
    tail: Tail
    d_model: int
    accepts_positions: bool
    blocks_return_tensor: bool
    pads: bool
    names: dict[str, str] = field(repr=False)

    def block(self, site: Site) -> Block:
        """The block of a site. Raises `SiteError` for a layer or a stream that is not there."""
        if site.layer >= len(self.blocks):
            raise SiteError(
                f"site {site}: the model has layers 0 to {len(self.blocks) - 1}, not {site.layer}"
            )
        block = self.blocks[site.layer]
        if site.stream in block.missing:
            raise SiteError(f"site {site}: {block.missing[site.stream]}")
        if site.head is not None and site.head >= block.n_heads:
            raise SiteError(
                f"site {site}: the block has heads 0 to {block.n_heads - 1}, not {site.head}"
            )
        return block

    def dim(self, site: Site) -> int:
        """Width of the activation at a site."""
        block = self.block(site)
        if site.stream == "mlp_act":
            assert block.down_proj is not None
            return block.down_proj.weight.shape[1]
        if site.stream == "head_z":
            width = block.out_proj.weight.shape[1]
            return width if site.head is None else width // block.n_heads
        return self.d_model

    def writer(self, site: Site) -> Tensor | None:
        """The matrix W (d_model, dim) by which the site writes to the residual stream, or None
        where the site is the residual stream or its write is not linear (a norm follows)."""
        block = self.block(site)
        if site.stream == "mlp_act":
            assert block.down_proj is not None
            return block.down_proj.weight
        if site.stream == "head_z":
            weight = block.out_proj.weight
            return weight if site.head is None else weight[:, self.head_slice(site)]
        return None

    def head_slice(self, site: Site) -> slice:
        """Columns of `head_z` that belong to the site."""
        if site.head is None:
            return slice(None)
        width = self.dim(site)
        return slice(site.head * width, (site.head + 1) * width)

    @cached_property
    def streams(self) -> dict[str, str]:
        """Every stream, with `yes` or the reason why block 0 lacks it."""
        return {name: "yes" for name in self.blocks[0].entries} | self.blocks[0].missing

    def __repr__(self) -> str:
        streams = " ".join(self.blocks[0].entries)
        return f"ModelMap({len(self.blocks)} blocks, d_model {self.d_model}: {streams})"


@dataclass(eq=False)
class _Call:
    module: nn.Module
    parents: tuple[nn.Module, ...]
    x: Tensor
    y: Tensor | None = None
    wrote_cache: bool = False
    plain: bool = True


class _Trace:
    """Records every module call of one forward pass, in order of entry."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[_Call] = []
        self.stack: list[_Call] = []

    def run(self, ids: Tensor) -> Tensor:
        trace = self

        class Spy(DynamicCache):
            def update(self, key_states, value_states, layer_idx, *args, **kwargs):
                for call in trace.stack:
                    call.wrote_cache = True
                return super().update(key_states, value_states, layer_idx, *args, **kwargs)

        def enter(module, args, kwargs):
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            x = tensors[0] if tensors else torch.empty(0)
            parents = tuple(call.module for call in self.stack)
            call = _Call(module, parents, x.detach().clone())
            self.calls.append(call)
            self.stack.append(call)

        def leave(_module, _args, output):
            call = self.stack.pop()
            call.plain = isinstance(output, Tensor)
            value = output if call.plain or not output else output[0]
            call.y = value.detach().clone() if isinstance(value, Tensor) else None

        handles = []
        try:
            for module in self.model.modules():
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave))
            with torch.no_grad():
                output = self.model(input_ids=ids, past_key_values=Spy(), use_cache=True)
        finally:
            for handle in handles:
                handle.remove()
        return output.logits.detach()

    def inside(self, module: nn.Module) -> list[_Call]:
        return [call for call in self.calls if any(parent is module for parent in call.parents)]


def build_map(model: PreTrainedModel) -> ModelMap:
    """Maps and proves the parts of `model`. Raises `ModelError` where the basic structure (blocks,
    attention, unembedding) cannot be found; streams that fail are listed in `Block.missing`."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _build(model)
    except ModelError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{type(model).__name__} cannot be mapped as a causal LM with a key-value cache: "
            f"{type(error).__name__}: {line}"
        ) from error
    finally:
        model.train(was_training)


def _build(model: PreTrainedModel) -> ModelMap:
    kind = type(model).__name__
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise ModelError(f"{kind} has no token embedding or unembedding: not a causal LM")
    weight = embedding.get_parameter("weight")
    vocabulary = weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=generator)
    trace = _Trace(model)
    logits = trace.run(ids.to(weight.device))
    names = {id(module): name for name, module in model.named_modules()}
    modules = _find_blocks(model, trace)
    if not modules:
        raise ModelError(
            f"{kind}: no list of blocks in which each writes keys and values once was found; "
            "recurrent, encoder-decoder and cache-free models are not supported"
        )
    calls = {id(call.module): call for call in trace.calls}
    d_model = calls[id(modules[0])].x.shape[-1]
    n_heads = model.config.get_text_config(decoder=True).num_attention_heads
    inner = next(
        parent
        for parent in reversed(calls[id(modules[0])].parents)
        if "inputs_embeds" in inspect.signature(parent.forward).parameters
    )
    blocks = _Prober(model, trace, modules, names, d_model, n_heads, ids).blocks()
    tail = _find_tail(model, trace, calls[id(modules[-1])], head, logits, names)
    accepts = "position_ids" in inspect.signature(inner.forward).parameters
    located = {"blocks": names[id(modules[0])].rsplit(".", 1)[0], "unembedding": tail.head.name}
    plain = calls[id(modules[0])].plain
    pads = _pads(model, ids.to(weight.device), logits, accepts)
    return ModelMap(inner, blocks, tail, d_model, accepts, plain, pads, located)


def _pads(model: nn.Module, ids: Tensor, logits: Tensor, accepts_positions: bool) -> bool:
    pad = ids.new_zeros(1, 2)
    mask = torch.cat([pad, torch.ones_like(ids)], dim=1)
    arguments = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if accepts_positions else {}
    padded = model(
        input_ids=torch.cat([pad, ids], dim=1), attention_mask=mask, use_cache=False, **arguments
    )
    tolerance = 1e-8 if logits.dtype == torch.float64 else 1e-2
    return _same(padded.logits[:, 2:], logits, tolerance)


def _find_blocks(model: nn.Module, trace: _Trace) -> list[nn.Module]:
    called = {}
    for call in trace.calls:
        called.setdefault(id(call.module), []).append(call)
    for container in model.modules():
        if not isinstance(container, nn.ModuleList) or len(container) == 0:
            continue
        runs = [called.get(id(child), []) for child in container]
        if all(len(run) == 1 and run[0].wrote_cache and run[0].y is not None for run in runs):
            return list(container)
    return []


def _same(a: Tensor | None, b: Tensor | None, tolerance: float = 1e-4) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    a, b = a.to(torch.float64), b.to(device=a.device, dtype=torch.float64)
    return bool((a - b).norm() <= tolerance * (a.norm() + b.norm()) / 2)


def _as_linear(call: _Call, name: str) -> Linear | None:
    """The call as a proven linear map, or None."""
    weight = getattr(call.module, "weight", None)
    if weight is None or weight.ndim != 2 or call.y is None or call.x.ndim < 2:
        return None
    bias = getattr(call.module, "bias", None)
    y = call.y if bias is None else call.y - bias.detach()
    for transposed in (False, True):
        matrix = weight.detach() if transposed else weight.detach().T
        fits = (call.x.shape[-1], call.y.shape[-1]) == matrix.shape
        if fits and _same(call.x.to(matrix.dtype) @ matrix, y.to(matrix.dtype), 2e-2):
            return Linear(name, call.module, transposed)
    return None


@dataclass
class _Prober:
    """Finds the roles inside each block and proves them by small interventions on its own input."""

    model: PreTrainedModel
    trace: _Trace
    modules: list[nn.Module]
    names: dict[int, str]
    d_model: int
    n_heads: int
    ids: Tensor

    def blocks(self) -> tuple[Block, ...]:
        rerun = _BlockRunner(self.model, self.modules, self.ids)
        return tuple(self._block(index, rerun) for index in range(len(self.modules)))

    def _linears(self, calls: list[_Call]) -> list[tuple[_Call, Linear]]:
        pairs = [(call, _as_linear(call, self.names[id(call.module)])) for call in calls]
        return [
            (call, linear)
            for call, linear in pairs
            if linear is not None and linear.weight.shape[0] == self.d_model
        ]

    def _block(self, index: int, rerun: _BlockRunner) -> Block:
        module = self.modules[index]
        name = self.names[id(module)]
        inside = self.trace.inside(module)
        own = next(call for call in self.trace.calls if call.module is module)
        depth = len(own.parents) + 1
        attention = next(
            (c.module for c in inside if len(c.parents) == depth and c.wrote_cache), None
        )
        if attention is None:
            raise ModelError(f"{name}: no attention child that writes keys and values was found")
        in_attention = self.trace.inside(attention)
        outs = self._linears(in_attention)
        if not outs:
            raise ModelError(f"{name}: no linear output projection was found in its attention")
        out_call, out_proj = outs[-1]
        excluded = {id(call) for call in in_attention}
        others = [c for c in inside if id(c) not in excluded and c.module is not attention]
        h_in, h_out = own.x, own.y
        assert h_out is not None
        missing: dict[str, str] = {}
        entries = {"resid_pre": "pre", "resid_post": "post"}

        downs = self._linears(others)
        down_proj, reason = None, f"{name} has no single down-projection (a mixture of experts?)"
        for call, linear in reversed(downs):
            if call.x.shape[:-1].numel() == h_in.shape[:-1].numel():
                with muted(out_proj.module, linear.module):
                    identity = rerun(index, h_in)
                if _same(identity, h_in):
                    down_proj = linear
                else:
                    reason = (
                        f"{name}: with attention and {linear.name} muted the block is not the "
                        "identity, so they are not its only writers"
                    )
                break

        mid_reader, mid = None, None
        after = self.trace.calls.index(out_call)
        for call in others:
            late = self.trace.calls.index(call) > after
            if not late or call.x.numel() != h_in.numel() or call.x.shape[-1] != self.d_model:
                continue
            seen = call.x.reshape(h_in.shape)
            if not _same(seen, h_in, 1e-6):
                with muted(out_proj.module):
                    candidate = rerun(index, seen)
                if _same(candidate, h_out):
                    mid_reader, mid = call.module, seen
                    break
        if mid_reader is None:
            missing["resid_mid"] = f"{name} has no residual stream between attention and MLP"
        else:
            entries["resid_mid"] = "mid"

        def changed(place, module, width, where):
            """Change of the block output and of resid_mid when ε is added at `where`."""
            epsilon = torch.randn(width, generator=torch.Generator().manual_seed(1))
            epsilon = epsilon.to(h_in) * h_in.std()
            seen = {}

            def nudge(x):
                return x + epsilon

            with ExitStack() as stack:
                if mid_reader is not None:
                    stack.enter_context(
                        on_input(mid_reader, lambda x: seen.update(mid=x.reshape(h_in.shape)))
                    )
                before = rerun(index, h_in)
                mid_before = seen.get("mid")
                stack.enter_context(where(module, nudge))
                after = rerun(index, h_in)
                mid_after = seen.get("mid")
            if mid_before is None or mid_after is None:
                return epsilon, after - before, None
            return epsilon, after - before, mid_after - mid_before

        def entry(linear: Linear, stream: str) -> str:
            inner = stream in ("mlp_act", "head_z")
            width = linear.weight.shape[1] if inner else self.d_model
            epsilon, out, mid = changed(
                stream, linear.module, width, on_input if inner else on_output
            )
            expected = (linear.weight @ epsilon if inner else epsilon).expand_as(out)
            tolerance = 2e-3 if h_in.dtype in (torch.float32, torch.float64) else 5e-2
            if _same(out, expected, tolerance):
                return "post"
            if mid is not None and _same(mid, expected, tolerance):
                return "mid"
            return "hook"

        for stream, linear in (("attn_out", out_proj), ("head_z", out_proj)):
            entries[stream] = entry(linear, stream)
        if down_proj is None:
            missing |= dict.fromkeys(("mlp_act", "mlp_out"), reason)
        else:
            for stream in ("mlp_act", "mlp_out"):
                entries[stream] = entry(down_proj, stream)
        heads = self.n_heads if out_proj.weight.shape[1] % self.n_heads == 0 else 1
        readers = self._readers(inside, excluded, h_in, mid, {id(out_proj.module)})
        return Block(module, out_proj, down_proj, mid_reader, readers, heads, entries, missing)

    def _readers(self, inside, in_attention, h_in, mid, not_these) -> tuple[Reader, ...]:
        """Linear maps whose input is the residual stream or a norm of it."""
        streams = [(h_in, False)] + ([(mid, True)] if mid is not None else [])
        found = []
        for call in inside:
            if id(call.module) in not_these or call.x.shape[-1] != self.d_model:
                continue
            linear = _as_linear(call, self.names[id(call.module)])
            if linear is None:
                continue
            source = call.x.reshape(h_in.shape) if call.x.numel() == h_in.numel() else None
            norms = [
                other
                for other in inside
                if other is not call
                and other.y is not None
                and other.y.numel() == h_in.numel()
                and source is not None
                and _same(other.y.reshape(h_in.shape), source, 1e-6)
            ]
            for stream, is_mid in streams:
                if _same(source, stream, 1e-6):
                    found.append(Reader(linear, None, is_mid, id(call) in in_attention))
                    break
                norm = next(
                    (
                        n
                        for n in norms
                        if n.x.numel() == h_in.numel()
                        and _same(n.x.reshape(h_in.shape), stream, 1e-6)
                    ),
                    None,
                )
                if norm is not None:
                    found.append(Reader(linear, norm.module, is_mid, id(call) in in_attention))
                    break
        return tuple(found)


class _Stop(Exception):
    pass


class _BlockRunner:
    """Runs one block alone, on a given input, with the other arguments the model gives it."""

    def __init__(self, model: PreTrainedModel, modules: list[nn.Module], ids: Tensor) -> None:
        self.arguments: list[tuple[tuple, dict]] = []
        self.modules = modules

        def keep(_module, args, kwargs):
            self.arguments.append((args[1:], dict(kwargs)))

        with ExitStack() as stack:
            for module in modules:
                handle = module.register_forward_pre_hook(keep, with_kwargs=True)
                stack.callback(handle.remove)
            model(input_ids=ids.to(model.device), use_cache=False)

    def __call__(self, index: int, hidden: Tensor) -> Tensor:
        args, kwargs = self.arguments[index]
        if "hidden_states" in kwargs:
            return first_tensor(self.modules[index](*args, **kwargs | {"hidden_states": hidden}))
        return first_tensor(self.modules[index](hidden, *args, **kwargs))


def _find_tail(
    model: PreTrainedModel,
    trace: _Trace,
    last: _Call,
    head: nn.Module,
    logits: Tensor,
    names: dict[int, str],
) -> Tail:
    kind = type(model).__name__
    assert last.y is not None
    current, norms = last.y, []
    inside_last = {id(call) for call in trace.inside(last.module)}
    later = trace.calls[trace.calls.index(last) + 1 :]
    for call in later:
        if id(call) in inside_last:
            continue
        if call.module is head:
            linear = _as_linear(call, names[id(head)])
            if linear is None or not _same(call.x[:, -1], current[:, -1], 1e-6):
                break
            assert call.y is not None
            return Tail(tuple(norms), linear, _find_finish(model, call.y, logits))
        if call.y is not None and _same(call.x, current, 1e-6):
            current = call.y
            norms.append(call.module)
    raise ModelError(f"{kind}: the way from the last block to the unembedding was not found")


def _find_finish(model: PreTrainedModel, raw: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor]:
    raw = raw[:, -logits.shape[1] :].to(logits)
    if _same(raw, logits, 1e-6):
        return _identity
    scale = float((raw * logits).sum() / (raw * raw).sum())
    if _same(raw * scale, logits, 1e-5):
        return _Scale(scale)
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    if cap and _same(torch.tanh(raw / cap) * cap, logits, 1e-5):
        return _SoftCap(float(cap))
    raise ModelError(
        f"{type(model).__name__}: its logits are neither the unembedding's output, "
        "nor a multiple of it, nor soft-capped"
    )


def _identity(logits: Tensor) -> Tensor:
    return logits


@dataclass(frozen=True)
class _Scale:
    scale: float

    def __call__(self, logits: Tensor) -> Tensor:
        return logits * self.scale


@dataclass(frozen=True)
class _SoftCap:
    cap: float

    def __call__(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits / self.cap) * self.cap
