"""How many dimensions a subspace needs, told by pairs that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..core.errors import SubspaceError, TaskError
from ..core.progress import track
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.patches import SubspacePatch
from ..tasks.dividing import Row, divide_prompts
from ..tasks.pairset import PairSet
from .registry import Fit, named
from .subspace import Subspace

DIMS = (1, 2, 4, 8)
WITHIN = 0.02
LEAST = 8
"""Pairs to choose on at least."""


@dataclass(frozen=True)
class Try:
    """One number of dimensions: the `fldd` of its subspace on the pairs to choose on, or, where the
    method has no such subspace, None and the reason `why`."""

    dim: int
    fldd: float | None
    why: str = ""


@dataclass(frozen=True, eq=False)
class ChosenDim:
    """The `subspace` that was chosen, and all that was tried, smallest first."""

    subspace: Subspace
    tries: tuple[Try, ...] = field(repr=False)


def best_dim(
    fit: Fit | str,
    fit_on: Capture,
    choose_on: Capture,
    site: Site | str,
    dims: Sequence[int] = DIMS,
    *,
    within: float = WITHIN,
    **options: Any,
) -> ChosenDim:
    """The subspace of fewest dimensions that does as much as the best of `dims`, less `within`.

    Each is fitted to the pairs of `fit_on` by `fit`, with its `options` (`seed` among them), and
    its FLDD taken on those of `choose_on`; neither may be pairs that the subspace is judged on
    afterwards. `fit` of the subspace holds `tried`, the FLDD by number of dimensions, and
    `chosen_on`, the hash of the pairs to choose on.

    Raises `SubspaceError` where no FLDD is defined, as where the model prefers the target, and
    where no number of dimensions can be fitted, with the reason for the smallest.

    >>> chosen = best_dim("das", some, others, "L20.resid_post@END")
    >>> chosen.subspace.dim, [(each.dim, each.fldd) for each in chosen.tries]
    """
    fit, site = named(fit) if isinstance(fit, str) else fit, Site.of(site)
    replay = choose_on.at(site, fit_on.lens)
    found: dict[int, Subspace] = {}
    tries: list[Try] = []
    for dim in track(sorted(set(dims)), f"dimensions at {site}"):
        try:
            found[dim] = fit(fit_on.lens, fit_on, site, dim=dim, **options)
        except SubspaceError as error:
            tries.append(Try(dim, None, str(error)))
        else:
            effect = replay.effect(SubspacePatch(found[dim].basis)).fldd.value
            tries.append(Try(dim, effect))
    done = {each.dim: each.fldd for each in tries if each.fldd is not None}
    if not found:
        raise SubspaceError(next((each.why for each in tries), f"{site}: no dimensions to try"))
    if not done:
        raise SubspaceError(
            f"{site}: the pairs to choose on have no FLDD: on average the model prefers their "
            "target unpatched"
        )
    dim = min(dim for dim, fldd in done.items() if fldd >= max(done.values()) - within)
    facts = dict(tried={str(dim): fldd for dim, fldd in done.items()})
    record = found[dim].fit | facts | dict(chosen_on=choose_on.pairs.sha256)
    return ChosenDim(replace(found[dim], fit=record), tuple(tries))


def divided(pairs: PairSet) -> tuple[list[int], list[int]]:
    """Which pairs to fit on, about two thirds, and which to choose on, without a prompt in common.

    Raises `TaskError` where they cannot be divided, or where fewer than `LEAST` are to choose on.
    """
    rows = [Row(pairs.where(number), pair) for number, pair in enumerate(pairs)]
    numbers = {id(row): number for number, row in enumerate(rows)}
    fit, choice = divide_prompts(rows, f"task {pairs.name}")
    if len(choice) < LEAST:
        raise TaskError(
            f"task {pairs.name}: {len(pairs)} pairs to fit and to choose on leave {len(choice)} to "
            f"choose on, {LEAST} are needed: give more pairs"
        )
    return [numbers[id(row)] for row in fit], [numbers[id(row)] for row in choice]


def auto_dim(
    fit: Fit | str,
    captured: Capture,
    site: Site | str,
    dims: Sequence[int] = DIMS,
    **options: Any,
) -> ChosenDim:
    """`best_dim` on the pairs of one capture, `divided` into those to fit on and those to choose
    on: a subspace for an audit on other pairs. Raises what either raises.

    >>> auto_dim("das", captures.train, "L20.resid_post@END", constraint="support").subspace.dim
    """
    some, others = (captured.subset(torch.tensor(part)) for part in divided(captured.pairs))
    return best_dim(fit, some, others, site, dims, **options)
