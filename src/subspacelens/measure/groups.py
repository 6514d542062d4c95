"""Sites in groups of which each fits one capture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.site import Site
from ..engine.batches import TOKENS_PER_BATCH
from ..model.lens import LensModel
from ..tasks.pairset import PairSet


def capture_groups(
    lens: LensModel, pairs: PairSet, sites: Sequence[Site], memory: int
) -> list[list[Site]]:
    """Consecutive sites that share a capture, each group's estimated size within `memory`, or a
    single site."""
    size = torch.finfo(lens.dtype).bits // 8
    read = [prompt for pair in pairs.pairs for prompt in pair.reads]
    lengths = [len(prompt.ids) for prompt in read]
    columns = min(TOKENS_PER_BATCH, sum(lengths))
    layers, width = len(lens.map.blocks), lens.map.d_model
    groups: list[list[Site]] = []
    used = memory
    for site in sites:
        prefix = sum(prompt.columns[site.label] for prompt in read)
        activation = lens.map.dim(site) * (2 * len(pairs) + columns)
        entry = width * (sum(lengths) - prefix + columns)
        fixed = 2 * width * prefix * (layers - site.layer)
        own = size * (activation + entry)
        fresh = not groups or all(other.label != site.label for other in groups[-1])
        more = own + size * fixed if fresh else own
        if groups and used + more <= memory:
            groups[-1].append(site)
            used += more
        else:
            groups.append([site])
            used = own + size * fixed
    return groups
