"""Runs every distinct prompt once, without gradients, and keeps what patches will need.

A patch at block L and column p changes nothing at blocks before L and nothing at columns before p.
So for a base prompt the capture keeps the residual stream where the patch enters, at columns from
p on, and the keys and values of the later blocks at the columns before p. A source prompt gives its
activations only, and its pass stops at the deepest site asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.errors import ModelError, SiteError, TaskError
from ..core.identity import Identity
from ..core.progress import track
from ..core.site import EXPERT, Site
from ..model.hooks import check_ready, exclusive
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Prompt
from ..tasks.tokens import END
from .batches import prompt_batches
from .buckets import Bucket, selected
from .fitting_prompts import check_fits
from .outcomes import Outcomes
from .passes import BasePasses, prompt_key
from .plan import Plan
from .replay import Replay

Around = Callable[[Sequence[Prompt]], AbstractContextManager[None]]
"""What is done to the model while it reads some prompts."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Capture:
    """All that audits and fits of these pairs at these sites need from the model's full passes.

    `base[site]` and `source[site]` are (n, dim) activations, in the model's dtype; `memory` is the
    budget in bytes that replays get (see `Replay`).

    >>> captured = capture(lens, task.test, [site])
    >>> captured.at(site).outcomes(patching.Full()).logit_diff  # nats, one a pair
    """

    lens: LensModel = field(repr=False)
    pairs: PairSet
    sites: tuple[Site, ...]
    base: dict[Site, Tensor] = field(repr=False)
    source: dict[Site, Tensor] = field(repr=False)
    clean: Outcomes = field(repr=False)
    buckets: dict[str, tuple[Bucket, ...]] = field(repr=False)
    made_with: Identity = field(repr=False)
    memory: int | None = None

    def at(self, site: Site | str, lens: LensModel | None = None) -> Replay:
        """One site of the capture, ready to be patched.

        Raises `SiteError` if the site was not captured, `ModelError` if `lens`, where it is given,
        is not the model that the capture was made with.
        """
        site = Site.of(site)
        if site not in self.base:
            raise SiteError(
                f"site {site} is not in the capture of {', '.join(map(str, self.sites))}"
            )
        if lens is not None:
            self.check(lens)
        return Replay(
            lens=self.lens,
            site=site,
            pairs=self.pairs,
            base=self.base[site],
            source=self.source[site],
            clean=self.clean,
            buckets=self.buckets[site.label],
            memory=self.memory,
        )

    def check(self, lens: LensModel) -> None:
        """Raises `ModelError`, naming what differs, unless the capture was made with this model, in
        the state in which it is now."""
        self.made_with.require(lens.identity, "the capture")

    def select(self, pairs: PairSet, indices: Tensor) -> Capture:
        """The capture of `pairs`: those at `indices` (m,) of this one's, in that order."""
        return replace(
            self,
            pairs=pairs,
            base={site: x[indices.to(x.device)] for site, x in self.base.items()},
            source={site: x[indices.to(x.device)] for site, x in self.source.items()},
            clean=self.clean[indices],
            buckets={label: selected(parts, indices) for label, parts in self.buckets.items()},
        )

    def subset(self, indices: Tensor) -> Capture:
        """The capture of the pairs at `indices` (m,), in that order."""
        return self.select(self.pairs.at(indices.tolist()), indices)

    def difference(self, site: Site | str) -> Tensor:
        """Source minus base activation, (n, dim)."""
        site = Site.of(site)
        return self.source[site] - self.base[site]


def check_pairs(pairs: PairSet, site: Site, *, shifted: bool = False) -> None:
    """Raises `TaskError` if a pair lacks the site's label, or, unless `shifted`, has it in
    different columns of base and source: there an activation differs by position too. `END` may
    always: it is the last token of both, whatever their lengths."""
    if site.label not in pairs.labels:
        raise TaskError(
            f"site {site}: the pairs of task {pairs.name} have no label '{site.label}', "
            f"only {', '.join(pairs.labels)}"
        )
    if shifted or site.label == END:
        return
    for number, pair in enumerate(pairs.pairs):
        ours, theirs = pair.base.columns[site.label], pair.source.columns[site.label]
        if ours != theirs:
            raise TaskError(
                f"site {site}: {pairs.where(number)}: label {site.label} is in column {ours} of "
                f"the base and {theirs} of the source, so the activations differ by position too; "
                "align the prompts, or allow it with --shifted"
            )


def capture(
    lens: LensModel,
    pairs: PairSet,
    sites: Iterable[Site | str],
    *,
    shifted: bool = False,
    memory: int | None = None,
    around: Around | None = None,
) -> Capture:
    """One pass over every distinct prompt of `pairs`, for all `sites` at once.

    `shifted` allows a label in different columns of base and source; `memory` is what replays may
    use, in bytes. `around` says what to do to the model while it reads a batch of base prompts, one
    a row, padded on the left; a source prompt is then read without it, unless it is a base too.

    Raises `SiteError` for a site that the model lacks, `TaskError` for pairs that do not fit it
    or the model (see `check_pairs`, `check_fits`) or of which more would be kept than there is room
    for (see `Plan.check_room`), `ModelError` for a model in training mode or activations that are
    not finite.

    >>> replay = sl.capture(lens, task.test, ["L18.mlp_act@S2"]).at("L18.mlp_act@S2")
    """
    plan = planned(lens, pairs, sites, shifted=shifted)
    plan.check_room()
    return filled(plan, plan.in_memory(), memory, around)


def planned(
    lens: LensModel, pairs: PairSet, sites: Iterable[Site | str], *, shifted: bool = False
) -> Plan:
    """What a capture will keep. Raises what `capture` does before the model runs."""
    places = tuple(dict.fromkeys(map(Site.of, sites)))
    if not places:
        raise SiteError("no site to capture")
    check_ready(lens.model)
    check_fits(lens, pairs)
    for site in places:
        lens.map.block(site)
        check_pairs(pairs, site, shifted=shifted)
    return Plan.of(lens, pairs, places)


def filled(
    plan: Plan,
    buckets: dict[str, tuple[Bucket, ...]],
    memory: int | None,
    around: Around | None = None,
) -> Capture:
    """The capture of a plan, by a pass over every distinct prompt; `buckets` are those of the plan
    in the place where they are to be held, and are filled. `around`: see `capture`."""
    lens, pairs, places = plan.lens, plan.pairs, plan.sites
    passes, identity = BasePasses(lens, places, pairs, buckets), lens.identity
    bases = {prompt_key(prompt): prompt for pair in pairs for prompt in pair.reads}
    sources = {prompt_key(pair.source): pair.source for pair in pairs}
    alone = [prompt for key, prompt in sources.items() if key not in bases]
    work = [
        (run, batch)
        for run, prompts, length in (
            (passes.run_bases, bases.values(), lambda prompt: len(prompt.ids)),
            (passes.run_sources, alone, passes.needed),
        )
        for batch in prompt_batches(prompts, length, lens.map.pads)
    ]
    with exclusive(lens.model), torch.no_grad():
        for run, batch in track(work, "capture"):
            with around(batch) if around and run == passes.run_bases else nullcontext():
                run(batch)
    base, source = (
        {site: torch.stack([passes.activations[key][site] for key in keys]) for site in places}
        for keys in (
            [prompt_key(pair.reads[0]) for pair in pairs],
            [prompt_key(pair.source) for pair in pairs],
        )
    )
    for site in places:
        check_finite(site, base[site], "base activation of pair")
        check_finite(site, source[site], "source activation of pair")
    return Capture(
        lens=lens,
        pairs=pairs,
        sites=places,
        base=base,
        source=source,
        clean=passes.outcomes(),
        buckets=buckets,
        made_with=identity,
        memory=memory,
    )


def check_finite(site: Site, values: Tensor, whose: str) -> None:
    """Raises `ModelError` for activations (n, dim) that are not finite, naming the first row, and
    `SiteError` where an expert computes nothing because the token is not sent to it."""
    bad = (~values.isfinite().all(dim=-1)).nonzero()
    if len(bad) and site.stream == EXPERT:
        raise SiteError(
            f"site {site}: the router does not send {len(bad)} of {len(values)} tokens to expert "
            f"{site.head}, the first that of the {whose} {int(bad[0])}, and there is nothing to "
            "patch: take the pairs of which it sends both, with --skip (in Python sl.routed)"
        )
    if len(bad):
        raise ModelError(
            f"site {site}: the {whose} {int(bad[0])} is not finite (NaN or infinite); try --dtype "
            "float32"
        )
