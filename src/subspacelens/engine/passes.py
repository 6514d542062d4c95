"""Full passes over prompts, and what a capture keeps of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ..core.site import Site
from ..model.hooks import stopping_after
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Prompt
from .batches import padded
from .buckets import Bucket, Entry, place_of
from .outcomes import Outcomes, answers_of
from .reading import Reading

READ = 64
"""Pairs whose longer answers are told at a time."""


def prompt_key(prompt: Prompt) -> Hashable:
    """What makes two prompts the same to a capture."""
    return prompt.ids, tuple(sorted(prompt.columns.items()))


class Passes:
    """Runs batches of prompts and keeps, by `prompt_key`, `activations` at every site."""

    def __init__(self, lens: LensModel, sites: tuple[Site, ...]) -> None:
        self.lens, self.sites = lens, sites
        self.activations: dict[Hashable, dict[Site, Tensor]] = {}

    def needed(self, prompt: Prompt) -> int:
        """How many columns of a source prompt the sites need."""
        return max(prompt.columns[site.label] for site in self.sites) + 1

    def run_sources(self, prompts: Sequence[Prompt]) -> None:
        """One batch that ends at the last column and at the deepest block that a site needs."""
        lengths = [self.needed(prompt) for prompt in prompts]
        deepest = max(site.layer for site in self.sites)
        streams, _ = self._run(prompts, lengths, (), deepest, None)
        self._keep_activations(prompts, streams)

    def _run(
        self,
        prompts: Sequence[Prompt],
        lengths: Sequence[int],
        entries: Sequence[Entry],
        deepest: int,
        cache: DynamicCache | None,
    ) -> tuple[dict[Entry | Site, Tensor], Tensor]:
        """The first `lengths` columns of the prompts through the blocks up to `deepest`: what stood
        at every entry, (n, T, d), and at every site, (n, width) in its column, and the output of
        that block. A site is copied when it is seen: a model may go on to change it in place."""
        model_map, device = self.lens.map, self.lens.device
        cut = [p.ids[:length] for p, length in zip(prompts, lengths, strict=True)]
        rows = torch.arange(len(prompts))
        ids, mask, positions = (tensor.to(device) for tensor in padded(cut))
        arguments = dict(input_ids=ids, attention_mask=mask, use_cache=cache is not None)
        if model_map.accepts_positions:
            arguments["position_ids"] = positions
        streams: dict[Entry | Site, Tensor] = {}

        def keeping(entry: Entry) -> Callable[[Tensor], None]:
            def keep(x: Tensor) -> None:
                streams[entry] = x.reshape(*ids.shape, x.shape[-1])

            return keep

        def keeping_columns(site: Site) -> Callable[[Tensor], None]:
            part = model_map.part(site)
            places = [p.columns[site.label] - n for p, n in zip(prompts, lengths, strict=True)]

            def keep(x: Tensor) -> None:
                streams[site] = x.reshape(*ids.shape, x.shape[-1])[rows, places][:, part]

            return keep

        with ExitStack() as stack:
            for site in self.sites:
                where, module = place_of(model_map, site)
                stack.enter_context(where(module, keeping_columns(site)))
            for kind, layer in entries:
                if layer < len(model_map.blocks):
                    stream = "resid_pre" if kind == "pre" else "resid_mid"
                    where, module = place_of(model_map, Site(layer, stream, "END"))
                    stack.enter_context(where(module, keeping((kind, layer))))
            ending = stack.enter_context(stopping_after(model_map.blocks[deepest].module))
            model_map.inner(**arguments, past_key_values=cache)
        return streams, ending.output

    def _keep_activations(self, prompts: Sequence[Prompt], streams: Mapping) -> None:
        for row, prompt in enumerate(prompts):
            self.activations[prompt_key(prompt)] = {
                site: streams[site][row].clone() for site in self.sites
            }


class BasePasses(Passes):
    """Passes over the base prompts of `pairs` too: each fills its rows of `buckets`, and what the
    model answers is known when all are through."""

    def __init__(
        self,
        lens: LensModel,
        sites: tuple[Site, ...],
        pairs: PairSet,
        buckets: Mapping[str, Sequence[Bucket]],
    ) -> None:
        super().__init__(lens, sites)
        self.pairs, self.answers, n = pairs, answers_of(pairs), len(pairs)
        self.clean = Outcomes(torch.full((n,), torch.nan), torch.full((n,), -1))
        keys = [[prompt_key(prompt) for prompt in pair.reads] for pair in pairs]
        self.numbers: dict[Hashable, list[int]] = defaultdict(list)
        for number, pair in enumerate(pairs):
            if pair.continuations is None:
                self.numbers[keys[number][0]].append(number)
        self.continued = {n: keys[n] for n, pair in enumerate(pairs) if pair.continuations}
        self.longest = max((p.continuations.longest for p in pairs if p.continuations), default=0)
        self.last: dict[Hashable, Tensor] = {}
        self.rows: dict[Hashable, list[tuple[str, Bucket, int]]] = defaultdict(list)
        for label, parts in buckets.items():
            for bucket in parts:
                turns: dict[int, Iterator[Hashable]] = {}
                for row, number in enumerate(bucket.pairs.tolist()):
                    key = next(turns.setdefault(number, iter(keys[number])))
                    self.rows[key].append((label, bucket, row))
        every = (bucket for parts in buckets.values() for bucket in parts)
        self.entries = tuple(dict.fromkeys(entry for bucket in every for entry in bucket.entries))

    def run_bases(self, prompts: Sequence[Prompt]) -> None:
        """One batch to the logits, with all that replays start from."""
        blocks, cache = self.lens.map.blocks, DynamicCache()
        lengths = [len(prompt.ids) for prompt in prompts]
        streams, output = self._run(prompts, lengths, self.entries, len(blocks) - 1, cache)
        streams["pre", len(blocks)] = output
        self._keep_activations(prompts, streams)
        logits = self.lens.map.tail.logits(output[:, -1])
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            key, start = prompt_key(prompt), output.shape[1] - length
            if self.longest:
                self.last[key] = output[row, start:][-self.longest :].clone()
            numbers = self.numbers[key]
            answers = self.answers[numbers].to(logits.device)
            here = Outcomes.of(logits[row].float().expand(len(numbers), -1), answers)
            self.clean.logit_diff[numbers] = here.logit_diff.cpu()
            self.clean.top[numbers] = here.top.cpu()
            for label, bucket, place in self.rows[key]:
                _fill(bucket, place, streams, cache, row, start, start + prompt.columns[label])

    def outcomes(self) -> Outcomes:
        """What the model answers, after all passes."""
        for start in range(0, len(self.continued), READ):
            numbers = list(self.continued)[start : start + READ]
            reading = Reading.to([self.pairs[number] for number in numbers])
            rows = [self.last[key] for number in numbers for key in self.continued[number]]
            hidden = torch.stack(
                [rows[row][-1 - back] for row, back in zip(reading.row, reading.back, strict=True)]
            )
            here = Outcomes.read(reading, self.lens.map.tail, hidden)
            self.clean.logit_diff[numbers] = here.logit_diff.cpu()
            self.clean.top[numbers] = here.top.cpu()
        return self.clean


def _fill(bucket: Bucket, place: int, streams, cache, row: int, start: int, column: int) -> None:
    """Row `place` of a bucket, from row `row` of a batch in which the prompt begins at `start`."""
    here, left = slice(place, place + 1), bucket.prefix - (column - start)
    for entry, held in bucket.entries.items():
        stream = streams[entry][row, column:]
        held[here] = torch.cat([stream, stream[-1:].expand(bucket.suffix - len(stream), -1)])[None]
    for layer, keys in bucket.keys.items():
        kept = cache.layers[layer]
        keys[here] = pad(kept.keys[row : row + 1, :, start:column], (0, 0, left, 0))
        bucket.values[layer][here] = pad(
            kept.values[row : row + 1, :, start:column], (0, 0, left, 0)
        )
