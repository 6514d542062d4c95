"""Full passes over prompts, and what a capture keeps of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from ..core.site import Site
from ..model.hooks import stopping_after
from ..model.lens import LensModel
from ..tasks.pairset import Prompt
from .batches import padded, replay_groups
from .buckets import Bucket, Entry, entry_of, place_of


@dataclass(frozen=True)
class Trail:
    """What a replay from one label of one base prompt needs: the residual stream at `entries`
    (S, d) from the label's column on, and keys and values (heads, P, width) before it."""

    entries: dict[Entry, Tensor]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]


def prompt_key(prompt: Prompt) -> Hashable:
    """What makes two prompts the same to a capture."""
    return prompt.ids, tuple(sorted(prompt.columns.items()))


class Passes:
    """Runs batches of prompts and keeps, by `prompt_key`: `activations` at every site; of base
    prompts also `logits` after the last column (vocabulary,) and `trails` by label."""

    def __init__(self, lens: LensModel, sites: tuple[Site, ...]) -> None:
        self.lens, self.sites = lens, sites
        wanted: dict[str, dict[Entry, None]] = defaultdict(dict)
        for site in sites:
            wanted[site.label][entry_of(lens.map, site)] = None
        self.wanted = {label: tuple(entries) for label, entries in wanted.items()}
        self.activations: dict[Hashable, dict[Site, Tensor]] = {}
        self.trails: dict[Hashable, dict[str, Trail]] = {}
        self.logits: dict[Hashable, Tensor] = {}

    def needed(self, prompt: Prompt) -> int:
        """How many columns of a source prompt the sites need."""
        return max(prompt.columns[site.label] for site in self.sites) + 1

    def run_sources(self, prompts: Sequence[Prompt]) -> None:
        """One batch that ends at the last column and at the deepest block that a site needs."""
        lengths = [self.needed(prompt) for prompt in prompts]
        deepest = max(site.layer for site in self.sites)
        streams, _ = self._run(prompts, lengths, (), deepest, None)
        self._keep_activations(prompts, streams)

    def run_bases(self, prompts: Sequence[Prompt]) -> None:
        """One batch to the logits, with all that replays start from."""
        blocks, cache = self.lens.map.blocks, DynamicCache()
        lengths = [len(prompt.ids) for prompt in prompts]
        entries = tuple({entry for wanted in self.wanted.values() for entry in wanted})
        streams, output = self._run(prompts, lengths, entries, len(blocks) - 1, cache)
        streams["pre", len(blocks)] = output
        self._keep_activations(prompts, streams)
        logits = self.lens.map.tail.logits(output[:, -1])
        for row, prompt in enumerate(prompts):
            key, start = prompt_key(prompt), output.shape[1] - lengths[row]
            self.logits[key] = logits[row].float()
            self.trails[key] = {
                label: self._trail(streams, cache, label, row, start, prompt.columns[label])
                for label in self.wanted
            }

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
            part = model_map.head_slice(site) if site.stream == "head_z" else slice(None)
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

    def _trail(self, streams, cache, label: str, row: int, start: int, column: int) -> Trail:
        wanted, end = self.wanted[label], start + column
        layers = range(min(layer for _, layer in wanted), len(self.lens.map.blocks))
        return Trail(
            {entry: streams[entry][row, end:].clone() for entry in wanted},
            {i: cache.layers[i].keys[row, :, start:end].clone() for i in layers},
            {i: cache.layers[i].values[row, :, start:end].clone() for i in layers},
        )

    def buckets(self, label: str, prompts: Sequence[Prompt]) -> tuple[Bucket, ...]:
        """The trails of base prompts, one a pair, in buckets that are replayed together."""
        columns = [prompt.columns[label] for prompt in prompts]
        suffixes = [len(p.ids) - column for p, column in zip(prompts, columns, strict=True)]
        trails = [self.trails[prompt_key(prompt)][label] for prompt in prompts]
        groups = replay_groups(columns, suffixes, self.lens.map.pads)
        return tuple(_bucket(group, [trails[i] for i in group]) for group in groups)


def _bucket(pairs: list[int], trails: list[Trail]) -> Bucket:
    prefixes = [next(iter(trail.keys.values())).shape[1] if trail.keys else 0 for trail in trails]
    suffixes = [next(iter(trail.entries.values())).shape[0] for trail in trails]

    def left_padded(tensors: list[Tensor]) -> Tensor:
        widest = max(prefixes)
        return torch.stack(
            [torch.nn.functional.pad(t, (0, 0, widest - t.shape[1], 0)) for t in tensors]
        )

    def filled(x: Tensor) -> Tensor:
        return torch.cat([x, x[-1:].expand(max(suffixes) - len(x), -1)])

    first = trails[0]
    return Bucket(
        torch.tensor(pairs),
        max(prefixes) - torch.tensor(prefixes),
        torch.tensor(suffixes) - 1,
        {e: torch.stack([filled(trail.entries[e]) for trail in trails]) for e in first.entries},
        {layer: left_padded([trail.keys[layer] for trail in trails]) for layer in first.keys},
        {layer: left_padded([trail.values[layer] for trail in trails]) for layer in first.values},
    )
