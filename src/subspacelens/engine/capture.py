"""Runs every distinct prompt once, without gradients, and keeps what patches will need.

A patch at block L and column p changes nothing at blocks before L and nothing at columns before p.
So for a base prompt the capture keeps the residual stream where the patch enters, at columns from
p on, and the keys and values of the later blocks at the columns before p. A source prompt gives its
activations only, and its pass stops at the deepest site asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from ..core.errors import ModelError, SiteError, TaskError
from ..core.progress import track
from ..core.site import Site
from ..model.hooks import check_ready, first_tensor, on_input
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Prompt
from .batches import cost, padable, padded, prompt_batches
from .buckets import Bucket, Entry, Outcomes, answers_of, entry_of, outcomes_of, place_of


@dataclass(frozen=True)
class Capture:
    """All that audits and fits of these pairs at these sites need from the model's full passes.

    `base[site]` and `source[site]` are (n, dim) activations, in the model's dtype.
    """

    pairs: PairSet
    sites: tuple[Site, ...]
    base: dict[Site, Tensor] = field(repr=False)
    source: dict[Site, Tensor] = field(repr=False)
    clean: Outcomes = field(repr=False)
    buckets: dict[str, tuple[Bucket, ...]] = field(repr=False)

    def select(self, pairs: PairSet, indices: Tensor) -> Capture:
        """The capture of `pairs`: those at `indices` (m,) of this one's, in that order."""
        place = torch.full((len(self.pairs),), -1)
        place[indices] = torch.arange(len(indices))
        return Capture(
            pairs,
            self.sites,
            {site: x[indices.to(x.device)] for site, x in self.base.items()},
            {site: x[indices.to(x.device)] for site, x in self.source.items()},
            Outcomes(self.clean.logit_diff[indices], self.clean.top[indices]),
            {
                label: tuple(b for b in (bucket.select(place) for bucket in buckets) if b)
                for label, buckets in self.buckets.items()
            },
        )

    def difference(self, site: Site) -> Tensor:
        """Source minus base activation, (n, dim)."""
        return self.source[site] - self.base[site]


def check_pairs(pairs: PairSet, site: Site, *, shifted: bool = False) -> None:
    """Raises `TaskError` if a pair lacks the site's label, or, unless `shifted`, has it in
    different columns of base and source: there an activation differs by position too."""
    if site.label not in pairs.labels:
        raise TaskError(
            f"site {site}: the pairs of task {pairs.name} have no label '{site.label}', "
            f"only {', '.join(pairs.labels)}"
        )
    if shifted:
        return
    for number, pair in enumerate(pairs.pairs):
        ours, theirs = pair.base.columns[site.label], pair.source.columns[site.label]
        if ours != theirs:
            raise TaskError(
                f"site {site}: label {site.label} is in column {ours} of the base and {theirs} of "
                f"the source of pair {number}, so the activations differ by position too; align "
                "the prompts, or allow it with --shifted"
            )


def capture(
    lens: LensModel, pairs: PairSet, sites: Iterable[Site], *, shifted: bool = False
) -> Capture:
    """One pass over every distinct prompt of `pairs`, for all `sites` at once.

    Raises `SiteError` for a site that the model lacks, `TaskError` for pairs that do not fit it
    (see `check_pairs`), `ModelError` for a model in training mode or activations that are not
    finite.
    """
    sites = tuple(dict.fromkeys(sites))
    if not sites:
        raise SiteError("no site to capture")
    check_ready(lens.model)
    for site in sites:
        lens.map.block(site)
        check_pairs(pairs, site, shifted=shifted)
    bases = {_key(pair.base): pair.base for pair in pairs.pairs}
    sources = {_key(p.source): p.source for p in pairs.pairs if _key(p.source) not in bases}
    plan = _Plan(lens, sites, pairs)
    full = prompt_batches(bases.values(), lambda prompt: len(prompt.ids), lens.map.pads)
    partial = prompt_batches(sources.values(), plan.end, lens.map.pads)
    work = [(batch, True) for batch in full] + [(batch, False) for batch in partial]
    with torch.no_grad():
        for batch, is_full in track(work, "capture"):
            plan.run(batch, is_full)
    return plan.result()


def _key(prompt: Prompt) -> tuple:
    return prompt.ids, tuple(sorted(prompt.columns.items()))


@dataclass
class _Row:
    """What is kept of one base prompt."""

    entries: dict[Entry, Tensor]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]


class _Plan:
    def __init__(self, lens: LensModel, sites: tuple[Site, ...], pairs: PairSet) -> None:
        self.lens, self.sites, self.pairs = lens, sites, pairs
        self.wanted: dict[str, list[Entry]] = defaultdict(list)
        for site in sites:
            entry = entry_of(lens.map, site)
            if entry not in self.wanted[site.label]:
                self.wanted[site.label].append(entry)
        self.activations: dict[tuple, dict[Site, Tensor]] = {}
        self.rows: dict[tuple, dict[str, _Row]] = {}
        self.outcome: dict[tuple, Tensor] = {}

    def run(self, prompts: Sequence[Prompt], full: bool) -> None:
        """One batch; `full` passes go to the logits and keep what replays start from. The others
        end at the last column and at the deepest block that a site needs."""
        lens, blocks = self.lens, self.lens.map.blocks
        ends = [len(prompt.ids) if full else self.end(prompt) for prompt in prompts]
        ids, mask, positions = padded([p.ids[:end] for p, end in zip(prompts, ends, strict=True)])
        ids, mask, positions = (t.to(lens.device) for t in (ids, mask, positions))
        count, width = ids.shape
        entries = {e for wanted in self.wanted.values() for e in wanted} if full else set()
        tensors: dict[Entry | Site, Tensor] = {}
        deepest = len(blocks) - 1 if full else max(site.layer for site in self.sites)

        def keep(name, columns=slice(None)):
            def seen(x: Tensor) -> None:
                tensors[name] = x.reshape(count, width, x.shape[-1])[..., columns]

            return seen

        with ExitStack() as stack:
            for site in self.sites:
                place, module = place_of(lens.map, site)
                columns = lens.map.head_slice(site) if site.stream == "head_z" else slice(None)
                stack.enter_context(place(module, keep(site, columns)))
            for kind, layer in entries:
                if layer < len(blocks):
                    module = blocks[layer].mid_reader if kind == "mid" else blocks[layer].module
                    assert module is not None
                    stack.enter_context(on_input(module, keep((kind, layer))))
            last = blocks[deepest].module
            final: Entry = ("pre", len(blocks))

            def stop(_module, _args, output):
                if full:
                    keep(final)(first_tensor(output))
                raise _Stop

            handle = last.register_forward_hook(stop)
            stack.callback(handle.remove)
            cache = DynamicCache() if full else None
            arguments = dict(input_ids=ids, attention_mask=mask, use_cache=full)
            if lens.map.accepts_positions:
                arguments["position_ids"] = positions
            with suppress(_Stop):
                lens.map.inner(**arguments, past_key_values=cache)
        top = lens.map.tail.logits(tensors[final][:, -1]) if full else None
        for row, prompt in enumerate(prompts):
            key, start = _key(prompt), width - ends[row]
            column = {site: start + prompt.columns[site.label] for site in self.sites}
            self.activations[key] = {s: tensors[s][row, column[s]].clone() for s in self.sites}
            if cache is None or top is None:
                continue
            self.outcome[key] = top[row].float()
            self.rows[key] = {
                label: self._row(tensors, cache, wanted, row, start, start + prompt.columns[label])
                for label, wanted in self.wanted.items()
            }

    def end(self, prompt: Prompt) -> int:
        """How many columns of a prompt the sites need."""
        return max(prompt.columns[site.label] for site in self.sites) + 1

    def _row(self, tensors, cache, wanted, row, start, column) -> _Row:
        layers = range(min(layer for _, layer in wanted), len(self.lens.map.blocks))
        return _Row(
            {entry: tensors[entry][row, column:].clone() for entry in wanted},
            {i: cache.layers[i].keys[row, :, start:column].clone() for i in layers},
            {i: cache.layers[i].values[row, :, start:column].clone() for i in layers},
        )

    def result(self) -> Capture:
        pairs = self.pairs.pairs
        base_keys = [_key(pair.base) for pair in pairs]
        source_keys = [_key(pair.source) for pair in pairs]
        base = {s: torch.stack([self.activations[k][s] for k in base_keys]) for s in self.sites}
        source = {s: torch.stack([self.activations[k][s] for k in source_keys]) for s in self.sites}
        for site in self.sites:
            for role, values in (("base", base[site]), ("source", source[site])):
                bad = ~values.isfinite().all(dim=-1)
                if bad.any():
                    raise ModelError(
                        f"site {site}: the {role} activation of pair {int(bad.nonzero()[0])} is "
                        "not finite (NaN or infinite); try --dtype float32"
                    )
        logits = torch.stack([self.outcome[key] for key in base_keys])
        found = outcomes_of(logits, answers_of(self.pairs).to(logits.device))
        clean = Outcomes(found.logit_diff.cpu(), found.top.cpu())
        buckets = {label: self._buckets(label, base_keys) for label in self.wanted}
        return Capture(self.pairs, self.sites, base, source, clean, buckets)

    def _buckets(self, label: str, keys: list[tuple]) -> tuple[Bucket, ...]:
        columns = [pair.base.columns[label] for pair in self.pairs.pairs]
        suffix = [len(p.base.ids) - c for p, c in zip(self.pairs.pairs, columns, strict=True)]
        pads = self.lens.map.pads
        groups: list[list[int]] = []
        for i in sorted(range(len(keys)), key=lambda i: (suffix[i], columns[i])):
            first = groups[-1][0] if groups else i
            if groups and suffix[first] == suffix[i] and padable(columns[first], columns[i], pads):
                groups[-1].append(i)
            else:
                groups.append([i])
        joined = groups[:1]
        for group in groups[1:]:
            both = joined[-1] + group
            ours = [columns[i] for i in both]
            apart = sum(cost([suffix[i] for i in part]) for part in (joined[-1], group))
            cheaper = cost([suffix[i] for i in both]) <= apart
            if cheaper and padable(min(ours), max(ours), pads):
                joined[-1] = both
            else:
                joined.append(group)
        return tuple(self._bucket(label, keys, columns, group) for group in joined)

    def _bucket(self, label: str, keys: list, columns: list[int], group: list[int]) -> Bucket:
        rows = [self.rows[keys[i]][label] for i in group]
        width = max(columns[i] for i in group)
        lengths = [next(iter(row.entries.values())).shape[0] for row in rows]

        def stacked(tensors: list[Tensor]) -> Tensor:
            return torch.stack(
                [torch.nn.functional.pad(t, (0, 0, width - t.shape[1], 0)) for t in tensors]
            )

        def filled(x: Tensor) -> Tensor:
            return torch.cat([x, x[-1:].expand(max(lengths) - len(x), -1)])

        return Bucket(
            torch.tensor(group),
            torch.tensor([width - columns[i] for i in group]),
            torch.tensor(lengths) - 1,
            {e: torch.stack([filled(row.entries[e]) for row in rows]) for e in rows[0].entries},
            {layer: stacked([row.keys[layer] for row in rows]) for layer in rows[0].keys},
            {layer: stacked([row.values[layer] for row in rows]) for layer in rows[0].values},
        )


class _Stop(Exception):
    pass
