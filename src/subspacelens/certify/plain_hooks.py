"""Random prompts and plain hooks on the whole model: what everything else is compared with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..core.errors import ModelError, SiteError
from ..core.site import EXPERT, Site
from ..model.hooks import Place, at_columns, on_input, on_output
from ..model.lens import LensModel
from ..tasks.pairset import Pair, PairSet, Prompt

_LENGTHS = ((8, 4), (10, 6))
"""Length and inner column of the trial prompts: close enough to share a padded batch."""
_SHORTEST, _LONGEST, _TRIED = 4, 12, 64
"""Tokens of prompts that end where an expert is asked, and how many are tried."""
_SEED = 20231117
_NO_COLUMN = torch.empty(0, dtype=torch.long)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _words(lens: LensModel) -> list[int]:
    """Token ids that are not special."""
    size = lens.map.tail.head.weight.shape[0]
    config = lens.model.config.get_text_config(decoder=True)
    special: set[int] = set()
    if lens.tokenizer is not None:
        size = min(size, len(lens.tokenizer))
        special.update(lens.tokenizer.all_special_ids)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name, None)
        special.update(ids if isinstance(ids, list) else () if ids is None else (ids,))
    words = [token for token in range(size) if token not in special]
    if len(words) < 2:
        raise ModelError("the vocabulary has fewer than two tokens that are not special")
    return words


def trial_pairs(lens: LensModel) -> PairSet:
    """Two pairs of random tokens, of different lengths, with a label X inside and END."""
    words = _words(lens)
    rng = random.Random(_SEED)
    pairs = []
    for length, column in _LENGTHS:
        base, source = (
            Prompt("", tuple(rng.choices(words, k=length)), {"X": column, "END": length - 1})
            for _ in range(2)
        )
        answer, target = rng.sample(words, 2)
        pairs.append(Pair(base=base, source=source, answer=answer, target=target))
    return PairSet("certificate", "random", tuple(pairs))


def routed_pairs(lens: LensModel, site: Site) -> PairSet:
    """Two pairs of random tokens, each prompt of another length, whose last tokens are sent to the
    site's expert. Raises `SiteError` where too few are."""
    words, rng = _words(lens), random.Random(_SEED)
    found: dict[int, Prompt] = {}
    for _ in range(_TRIED):
        ids = tuple(rng.choices(words, k=_LONGEST))
        seen = Watched.of(lens, site, ids).activations[0].isfinite().all(dim=-1)
        for end in seen.nonzero()[:, 0].tolist():
            if end >= _SHORTEST - 1 and end not in found:
                found[end] = Prompt("", ids[: end + 1], {"END": end})
                break
        if len(found) == 4:
            a, b, c, d = found.values()
            answer, target = rng.sample(words, 2)
            pairs = ((a, b), (c, d))
            return PairSet(
                "certificate",
                "random",
                tuple(Pair(base=x, source=y, answer=answer, target=target) for x, y in pairs),
            )
    raise SiteError(
        f"site {site}: of {_TRIED} texts of random tokens too few have a token that the router "
        f"sends to expert {site.head}, so that nothing can be tried there"
    )


def two_of(pairs: PairSet) -> PairSet:
    """The pairs with the shortest and the longest base prompt."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].base.ids))
    chosen = dict.fromkeys((order[0], order[-1]))
    return PairSet(pairs.name, pairs.split, tuple(pairs[i] for i in chosen))


def projection_of(lens: LensModel, site: Site) -> nn.Module | None:
    """The module that reads the site and writes to the residual stream, if that is linear."""
    block = lens.map.blocks[site.layer]
    linear = {"mlp_act": block.down_proj, "head_z": block.out_proj}.get(site.stream)
    return None if linear is None else linear.module


def part_of(lens: LensModel, site: Site) -> slice | Tensor:
    """The site's share of the tensor that its hook sees."""
    heads = lens.map.blocks[site.layer].projected.get(site.stream)
    if heads is not None:
        return heads.part(site.head)
    return lens.map.head_slice(site) if site.stream == "head_z" else slice(None)


def place_at(lens: LensModel, site: Site) -> tuple[Place, nn.Module]:
    """The hook and the module by which a site is seen, read from the map of the block without the
    engine's own `place_of`, which is what the proofs are about."""
    block = lens.map.blocks[site.layer]
    if site.stream == EXPERT and site.head is not None:
        return block.routed.place(site.head), block.routed.module
    if site.stream in ("resid_pre", "resid_post"):
        module = block.module
    else:
        middle = site.stream == "resid_mid"
        module = block.middle if middle else block.projection(site.stream)
    reads = site.stream in ("resid_pre", "resid_mid", "mlp_act", "head_z")
    return (on_input if reads else on_output), module


@contextmanager
def adding(lens: LensModel, site: Site, columns: Tensor, deltas: Tensor) -> Iterator[None]:
    """Adds `deltas[r]` (rows, dim) at column `columns[r]` of row r. A change of `resid_mid` is one
    of what enters the block, with what attention adds held at its value in row 0."""

    def add(x: Tensor) -> Tensor:
        return x + deltas.to(x)

    def hold(x: Tensor) -> Tensor:
        every = x.reshape(len(columns), -1, x.shape[-1])
        return every[:1].expand_as(every).reshape(x.shape)

    with ExitStack() as stack:
        if site.stream == "resid_mid":
            block = lens.map.blocks[site.layer]
            stack.enter_context(at_columns(on_input, block.module, columns, add))
            stack.enter_context(on_output(block.out_proj.module, hold))
        else:
            place, module = place_at(lens, site)
            part = part_of(lens, site)
            stack.enter_context(at_columns(place, module, columns, add, part=part))
        yield


def last_logits(lens: LensModel, ids: Sequence[int], rows: int = 1) -> Tensor:
    """Logits (rows, vocabulary) at the last token of the same prompt in every row, on the CPU."""
    return _pass(lens, ids, rows, 1).logits[:, -1].cpu()


def _pass(lens: LensModel, ids: Sequence[int], rows: int, keep: int | Tensor) -> Any:
    """A pass of the same prompt in every row. Where the model can be told so, only the last `keep`
    columns, or those at these positions, are unembedded."""
    tokens = torch.tensor([list(ids)] * rows, device=lens.device)
    arguments: dict[str, Any] = {
        "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False,
    }  # fmt: skip
    if "logits_to_keep" in signature(lens.model.forward).parameters:
        arguments["logits_to_keep"] = keep
    return lens.model(**arguments)


@dataclass(frozen=True)
class Attention:
    """What the attention of one block makes of one prompt, float64 on the CPU: what its output
    projection reads, its keys and its values, each (heads, columns, width)."""

    mixed: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, lens: LensModel, site: Site, ids: Sequence[int], column: int, delta: Tensor):
        """With `delta` (dim,) added to the site at one column."""
        block, cache, read = lens.map.blocks[site.layer], DynamicCache(), []
        tokens = torch.tensor([list(ids)], device=lens.device)
        with (
            torch.no_grad(),
            adding(lens, site, torch.tensor([column]), delta[None]),
            on_input(block.out_proj.module, read.append),
        ):
            mask = torch.ones_like(tokens)
            lens.map.inner(
                input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True
            )
        kept: Any = cache.layers[site.layer]
        mixed = read[0].reshape(len(ids), block.n_heads, -1).transpose(0, 1)
        return cls(*(x.double().cpu() for x in (mixed, kept.keys[0], kept.values[0])))


def astray(
    site: Site, heads: int, before: Attention, after: Attention, column: int, delta: Tensor
) -> float:
    """How much of what a change of queries, keys or values does is not in the site's heads, of so
    many that there are, at its column, or in keys or values that it should leave alone, relative to
    their size; of a change `delta` of values also by how much they miss it. Infinite where nothing
    is changed."""
    name = {"attn_q": "mixed", "attn_k": "keys", "attn_v": "values"}[site.stream]
    moved = getattr(after, name) - getattr(before, name)
    size = float(moved.norm())
    if size == 0:
        return math.inf
    each = len(moved) // heads
    own = slice(None) if site.head is None else slice(site.head * each, (site.head + 1) * each)
    if site.stream == "attn_v":
        size = float(delta.double().norm())
        size *= each**0.5
        values = delta.double().cpu().view(-1, moved.shape[-1])
        moved[own, column] -= values.repeat_interleave(each, 0)
    else:
        moved[own, column] = 0
    errors = [float(moved.norm()) / size]
    for other in {"keys", "values"} - {name}:
        ours, theirs = getattr(after, other), getattr(before, other)
        errors.append(float((ours - theirs).norm() / theirs.norm()))
    return max(errors)


@dataclass(frozen=True)
class Watched:
    """A pass in which the site is only watched: the `activations` there, each (columns, dim),
    and when, among ("in", l) and ("out", l), the begin and the end of block l."""

    activations: list[Tensor]
    events: list

    @classmethod
    def of(cls, lens: LensModel, site: Site, ids: Sequence[int]) -> Watched:
        activations, events = [], []

        def see(x: Tensor) -> None:
            activations.append(
                x.detach().clone().reshape(len(ids), -1)[:, part_of(lens, site)].cpu()
            )
            events.append("site")

        def note(event: tuple[str, int]) -> Callable[[Tensor], None]:
            return lambda _: events.append(event)

        with ExitStack() as stack, torch.no_grad():
            # Hooks of one module run in the order of registration; the site's is the inner one.
            for layer, block in enumerate(lens.map.blocks):
                stack.enter_context(on_input(block.module, note(("in", layer))))
            place, module = place_at(lens, site)
            stack.enter_context(place(module, see))
            for layer, block in enumerate(lens.map.blocks):
                stack.enter_context(on_output(block.module, note(("out", layer))))
            _pass(lens, ids, 1, _NO_COLUMN)
        return cls(activations, events)

    def misplaced(self, layer: int, blocks: int) -> tuple[int, str]:
        """How many events are not where they belong, and what is wrong in words."""
        expected = [(kind, number) for number in range(blocks) for kind in ("in", "out")]
        order = [event for event in self.events if event != "site"]
        if order != expected:
            wrong = sum(a != b for a, b in zip_longest(order, expected))
            return wrong, f"the {blocks} blocks of the map do not run once each and in its order"
        begin, end = self.events.index(("in", layer)), self.events.index(("out", layer))
        inside = self.events[begin:end].count("site")
        outside = self.events.count("site") - inside
        if (inside, outside) == (1, 0):
            return 0, f"seen once a pass, within block {layer}"
        text = f"seen {inside} times within block {layer} and {outside} times elsewhere in a pass"
        return abs(inside - 1) + outside, text


def is_centred(lens: LensModel) -> bool:
    """Compares the effect of c·1 on the logits with that of a random vector of the same length."""
    site = Site(0, "resid_pre", "END")
    prompt = trial_pairs(lens)[0].base
    columns = torch.tensor([0, *(prompt.columns[label] for label in ("X", "X", "END", "END"))])
    residual = Watched.of(lens, site, prompt.ids).activations[0].double()
    noise = torch.randn(lens.map.d_model, generator=generator(), dtype=torch.float64)
    noise = noise / noise.square().mean().sqrt()
    both = [torch.ones_like(noise), noise]
    deltas = residual.square().mean().sqrt() * torch.stack([0 * noise, *both, *both])
    with adding(lens, site, columns, deltas.to(lens.dtype)):
        logits = last_logits(lens, prompt.ids, len(columns)).double()
    effect = (logits[1:] - logits[0]).norm(dim=-1)
    # Seen with LayerNorm: 5e-6 in float32, 0.01 in float16, 0.1 in bfloat16; with RMSNorm over 0.4.
    share = 0.2 if lens.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool((effect[0::2] <= share * effect[1::2]).all())
