"""One forward and one backward pass: every activation and its gradient, at every layer at once.

A replay gives the gradient at one site and costs a pass of what lies behind it. Where all sites of
a model are wanted, the model's own pass with autograd gives them together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..core.errors import SiteError
from ..core.machine import quarter_free
from ..core.progress import track
from ..core.site import EXPERT, Site
from ..model.hooks import check_ready, exclusive, on_input, stopping_after
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Prompt
from .batches import padded, prompt_batches
from .buckets import place_of
from .capture import check_pairs
from .fitting_prompts import check_fits
from .outcomes import Outcomes, answers_of
from .passes import prompt_key
from .reading import Reading


@dataclass(frozen=True, eq=False, kw_only=True)
class Slopes:
    """Activations of pairs at many sites, and how the answer reacts to them.

    `base[site]`, `source[site]` and `gradients[site]` are (n, dim), in the model's dtype; a row of
    the last is ∂(logit(answer) - logit(target))/∂h at the base activation, in nats a unit (of
    longer answers see `Outcomes`). `clean` is what the model answers.

    >>> slopes = gradient_pass(lens, task.test, ["L18.mlp_act@S2"])
    >>> slopes.difference("L18.mlp_act@S2").shape, slopes.gradients
    """

    lens: LensModel = field(repr=False)
    pairs: PairSet
    sites: tuple[Site, ...]
    base: dict[Site, Tensor] = field(repr=False)
    source: dict[Site, Tensor] = field(repr=False)
    gradients: dict[Site, Tensor] = field(repr=False)
    clean: Outcomes = field(repr=False)

    def difference(self, site: Site | str) -> Tensor:
        """Source minus base activation, Δ (n, dim)."""
        site = Site.of(site)
        return self.source[site] - self.base[site]


def gradient_pass(
    lens: LensModel,
    pairs: PairSet,
    sites: Iterable[Site | str],
    *,
    shifted: bool = False,
    memory: int | None = None,
) -> Slopes:
    """Runs the base prompts forward and backward once, the source prompts forward, for all `sites`.

    `shifted` allows a label in different columns of base and source; `memory` is what autograd may
    keep of one batch, in bytes, by default a quarter of what is free.

    Raises `SiteError` for a site that the model lacks, `TaskError` for pairs that do not fit it or
    the model, `ModelError` for a model in training mode.
    """
    places = tuple(dict.fromkeys(Site.of(site) for site in sites))
    if not places:
        raise SiteError("no site to take a gradient at")
    check_ready(lens.model)
    check_fits(lens, pairs)
    for site in places:
        if site.stream == EXPERT:
            raise SiteError(f"site {site}: single experts are not mapped: patch it, or map mlp_out")
        check_pairs(pairs, site, shifted=shifted)
    columns = (memory or quarter_free(lens.map.devices)) // _bytes_per_column(lens, pairs)
    bases = {prompt_key(pair.base): row for row, pair in enumerate(pairs)}
    sources = {prompt_key(pair.source): pair.source for pair in pairs}
    alone = [prompt for key, prompt in sources.items() if key not in bases]
    pads = lens.map.pads
    with exclusive(lens.model), torch.inference_mode(False):
        run = _Pass(lens, pairs, places)
        work: list[tuple[Callable, Sequence]] = [
            (run.bases, part)
            for batch in prompt_batches(range(len(pairs)), run.length, pads)
            for part in _pieces(batch, max(1, columns // max(map(run.columns, batch))))
        ]
        work += [(run.sources, batch) for batch in prompt_batches(alone, run.needed, pads)]
        for kind, batch in track(work, "gradients"):
            kind(batch)
    order = [prompt_key(pair.source) for pair in pairs]
    return Slopes(
        lens=lens,
        pairs=pairs,
        sites=places,
        base=run.base,
        source={
            site: torch.stack(
                [
                    run.base[site][bases[key]] if key in bases else run.elsewhere[key][site]
                    for key in order
                ]
            )
            for site in places
        },
        gradients=run.gradients,
        clean=run.clean,
    )


def _pieces(batch: list[int], rows: int) -> list[list[int]]:
    return [batch[start : start + rows] for start in range(0, len(batch), rows)]


def _bytes_per_column(lens: LensModel, pairs: PairSet) -> int:
    """Upper estimate of what autograd keeps of one column through all blocks."""
    block, size = lens.map.blocks[-1], torch.finfo(lens.dtype).bits // 8
    if block.down_proj is None:
        inner = 4 * max(max(p.shape[-2:]) for p in block.module.parameters())
    else:
        inner = block.down_proj.weight.shape[1]
    longest = max(len(prompt.ids) for pair in pairs for prompt in pair.reads)
    column = 10 * lens.map.d_model + 5 * inner + 4 * block.n_heads * longest
    return size * len(lens.map.blocks) * column


class _Pass:
    """Fills in, row by row, what stands at `sites`."""

    def __init__(self, lens: LensModel, pairs: PairSet, sites: tuple[Site, ...]) -> None:
        self.lens, self.pairs, self.sites = lens, pairs, sites
        self.base = {site: self._empty(site) for site in sites}
        self.gradients = {site: self._empty(site) for site in sites}
        self.elsewhere: dict[Hashable, dict[Site, Tensor]] = {}
        self.answers = answers_of(pairs)
        n = len(pairs)
        self.clean = Outcomes(torch.full((n,), torch.nan), torch.full((n,), -1))

    def _empty(self, site: Site) -> Tensor:
        return torch.full((len(self.pairs), self.lens.map.dim(site)), torch.nan).to(self.lens.dtype)

    def length(self, row: int) -> int:
        """Columns of the longest prompt that is read of a pair."""
        return max(len(prompt.ids) for prompt in self.pairs[row].reads)

    def columns(self, row: int) -> int:
        """Columns of all that is read of a pair."""
        return len(self.pairs[row].reads) * self.length(row)

    def needed(self, prompt: Prompt) -> int:
        """How many columns of a source prompt the sites need."""
        return max(prompt.columns[site.label] for site in self.sites) + 1

    def bases(self, rows: list[int]) -> None:
        """Forward and backward through the base prompts of the pairs `rows`."""
        pairs = [self.pairs[row] for row in rows]
        prompts = [prompt for pair in pairs for prompt in pair.reads]
        lengths = [len(prompt.ids) for prompt in prompts]
        reading = Reading.to(pairs) if self.pairs.continued else None
        of = torch.arange(len(rows)) if reading is None else reading.rows

        def keep(site: Site, x: Tensor) -> None:
            self.base[site][torch.tensor(rows)[of]] = x.detach().to(self.base[site])

        def slope(site: Site, gradient: Tensor) -> None:
            kept = self.gradients[site]
            none = kept.new_zeros(len(rows), kept.shape[1])
            kept[rows] = none.index_add(0, of, gradient.to(kept))

        entered: list[Tensor] = []

        def leaf(x: Tensor) -> Tensor:
            entered.append(x.detach().requires_grad_(True))
            return entered[0]

        with torch.enable_grad():
            with on_input(self.lens.map.blocks[0].module, leaf):
                output = self._run(prompts, lengths, len(self.lens.map.blocks) - 1, keep, slope)
            tail, answers = self.lens.map.tail, self.answers[rows]
            if reading is None:
                read = output[:, -1]
                picked = tail.logits_of(read, answers)
            else:
                read = output[reading.row, -1 - reading.back]
                picked = reading.scores(tail, read)
            torch.autograd.grad((picked[..., 0] - picked[..., 1]).sum(), entered[0])
        with torch.no_grad():
            if reading is None:
                outcomes = Outcomes.of(tail.logits(read).float(), answers.to(read.device))
            else:
                outcomes = Outcomes.read(reading, tail, read)
        self.clean.logit_diff[rows] = outcomes.logit_diff.cpu()
        self.clean.top[rows] = outcomes.top.cpu()

    @torch.no_grad()
    def sources(self, prompts: list[Prompt]) -> None:
        """Forward through source prompts, to the last column and block that a site needs."""
        kept: dict[Site, Tensor] = {}
        lengths = [self.needed(prompt) for prompt in prompts]
        self._run(prompts, lengths, max(site.layer for site in self.sites), kept.__setitem__, None)
        for row, prompt in enumerate(prompts):
            self.elsewhere[prompt_key(prompt)] = {
                site: x[row].to(self.base[site]) for site, x in kept.items()
            }

    def _run(
        self,
        prompts: Sequence[Prompt],
        lengths: Sequence[int],
        deepest: int,
        keep: Callable[[Site, Tensor], None],
        slope: Callable[[Site, Tensor], None] | None,
    ) -> Tensor:
        """The first `lengths` columns of the prompts through the blocks up to `deepest`: gives what
        stands at every site (rows, dim), and in a later backward pass its gradient, to `keep` and
        `slope`; returns the output of that block."""
        model_map, device = self.lens.map, self.lens.device
        cut = [p.ids[:length] for p, length in zip(prompts, lengths, strict=True)]
        ids, mask, positions = (tensor.to(device) for tensor in padded(cut))
        arguments = dict(input_ids=ids, attention_mask=mask, use_cache=False)
        if model_map.accepts_positions:
            arguments["position_ids"] = positions
        rows = torch.arange(len(prompts))
        seen: dict[tuple, list[Site]] = defaultdict(list)
        for site in self.sites:
            seen[place_of(model_map, site)].append(site)

        def reading(sites: list[Site]) -> Callable[[Tensor], None]:
            columns = {
                site: ids.shape[1]
                + torch.tensor(
                    [
                        prompt.columns[site.label] - length
                        for prompt, length in zip(prompts, lengths, strict=True)
                    ]
                )
                for site in sites
            }

            def each(x: Tensor, give: Callable[[Site, Tensor], None]) -> None:
                every = x.reshape(*ids.shape, x.shape[-1])
                for site, at in columns.items():
                    give(site, every[rows, at][:, model_map.part(site)])

            def read(x: Tensor) -> None:
                each(x.detach(), keep)
                if slope is not None:
                    x.register_hook(partial(each, give=slope))

            return read

        with ExitStack() as stack:
            for (place, module), sites in seen.items():
                stack.enter_context(place(module, reading(sites)))
            ending = stack.enter_context(stopping_after(model_map.blocks[deepest].module))
            model_map.inner(**arguments)
        return ending.output
