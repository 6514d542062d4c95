"""Activations alone, where nothing is to be replayed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..core.progress import track
from ..core.site import Site
from ..model.hooks import check_ready, exclusive
from ..model.lens import LensModel
from ..tasks.pairset import Prompt
from .batches import prompt_batches
from .capture import check_finite
from .passes import Passes, prompt_key


def activations(
    lens: LensModel, prompts: Sequence[Prompt], sites: Iterable[Site]
) -> dict[Site, Tensor]:
    """What stands at each of `sites`, (n, dim), in the model's dtype. Each prompt runs to the last
    column and the deepest block that a site needs, and nothing is kept for replays.

    Raises `SiteError` for a site that the model lacks, `ModelError` for a model in training mode or
    activations that are not finite.

    >>> activations(lens, [pair.base for pair in task.train], [site])[site]
    """
    places = tuple(sites)
    found = seen(lens, prompts, places)
    for site, values in found.items():
        check_finite(site, values, "activation of prompt")
    return found


def seen(lens: LensModel, prompts: Sequence[Prompt], places: Sequence[Site]) -> dict[Site, Tensor]:
    """The same, with NaN where an expert is not asked, and whatever else is not finite."""
    passes = Passes(lens, tuple(places))
    distinct = {prompt_key(prompt): prompt for prompt in prompts}
    with exclusive(lens.model), torch.no_grad():
        check_ready(lens.model)
        batches = prompt_batches(distinct.values(), passes.needed, lens.map.pads)
        for batch in track(batches, "activations"):
            passes.run_sources(batch)
    keys = [prompt_key(prompt) for prompt in prompts]
    return {site: torch.stack([passes.activations[key][site] for key in keys]) for site in places}
