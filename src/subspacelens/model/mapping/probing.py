"""Finds the parts of a causal language model by watching it run, and proves what it found.

No table of class names: blocks are the modules in which the key-value cache is written, the
attention is the child that writes it, projections are the last linear maps of either branch. Each
role is then proven on a small forward pass (`spec`: the identity of a block whose two branches are
muted, the additivity of a projection, the final chain from the last block to the logits). What
cannot be proven is left out, with the reason, and refused by name when asked for.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import ModelError, first_line
from ..hooks import evaluating, exclusive, first_tensor, muted, on_input, on_output
from .tail import find_tail
from .tracing import Call, Trace, as_linear, find_blocks, same
from .values import Block, Linear, ModelMap, Reader

_TOKENS = 6


def build_map(model: PreTrainedModel) -> ModelMap:
    """Maps and proves the parts of `model`. Raises `ModelError` where the basic structure (blocks,
    attention, unembedding) cannot be found; streams that fail are listed in `Block.missing`."""
    try:
        with exclusive(model), evaluating(model), torch.no_grad():
            return _build(model)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be mapped as a causal LM with a key-value cache: "
            f"{first_line(error)}"
        ) from error


def _build(model: PreTrainedModel) -> ModelMap:
    kind = type(model).__name__
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise ModelError(f"{kind} has no token embedding or unembedding: not a causal LM")
    weight = embedding.get_parameter("weight")
    vocabulary = weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=generator)
    trace = Trace(model)
    logits = trace.run(ids.to(weight.device))
    names = {id(module): name for name, module in model.named_modules()}
    modules = find_blocks(model, trace)
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
    tail = find_tail(model, trace, calls[id(modules[-1])], head, logits, names)
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
    return same(padded.logits[:, 2:], logits, tolerance)


@dataclass
class _Prober:
    """Finds the roles inside each block and proves them by small interventions on its own input."""

    model: PreTrainedModel
    trace: Trace
    modules: list[nn.Module]
    names: dict[int, str]
    d_model: int
    n_heads: int
    ids: Tensor

    def blocks(self) -> tuple[Block, ...]:
        rerun = _BlockRunner(self.model, self.modules, self.ids)
        return tuple(self._block(index, rerun) for index in range(len(self.modules)))

    def _linears(self, calls: list[Call]) -> list[tuple[Call, Linear]]:
        pairs = [(call, as_linear(call, self.names[id(call.module)])) for call in calls]
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
                if same(identity, h_in):
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
            if not same(seen, h_in, 1e-6):
                with muted(out_proj.module):
                    candidate = rerun(index, seen)
                if same(candidate, h_out):
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
            if same(out, expected, tolerance):
                return "post"
            if mid is not None and same(mid, expected, tolerance):
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
            linear = as_linear(call, self.names[id(call.module)])
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
                and same(other.y.reshape(h_in.shape), source, 1e-6)
            ]
            for stream, is_mid in streams:
                if same(source, stream, 1e-6):
                    found.append(Reader(linear, None, is_mid, id(call) in in_attention))
                    break
                norm = next(
                    (
                        n
                        for n in norms
                        if n.x.numel() == h_in.numel()
                        and same(n.x.reshape(h_in.shape), stream, 1e-6)
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
