"""Where the benchmark plants: it chooses for itself, in any model and for any pairs."""

from __future__ import annotations

from ..core.errors import TaskError
from ..core.site import Site
from ..measure.maps import instant_map
from ..measure.planting import can_be_planted
from ..model.lens import LensModel
from ..tasks import Task

KINDS = {"mlp_act": "MLP", "head_z": "head", "resid_post": "residual"}
PAIRS = 32
REFINED = 12
MOVABLE = 0.3
"""A place is one where the residual stream, or what DAS would find in it, lowers the logit
difference by this share of it: where nothing moves the answer nothing can be planted that does."""


def places(lens: LensModel, task: Task, count: int) -> list[Site]:
    """`count` pairs of layer and label, spread evenly over those that are movable, and at each an
    MLP's activation, a single head and the residual stream behind the block, where the model has
    them. Raises `TaskError` where there is no such place."""
    found = instant_map(lens, task.train, ["resid_post"], limit=PAIRS, refine=REFINED)
    movable = [
        score.site
        for label in found.labels
        for score in found.sites()
        if score.site.label == label
        and max(score.das_fldd, score.whole_fldd) >= MOVABLE
        and score.site.layer < len(lens.map.blocks) - 1
    ]
    if not movable:
        raise TaskError(f"task {task.name}: at no layer and label can the answer be moved")
    step = len(movable) / min(count, len(movable))
    chosen = [movable[int((i + 0.5) * step)] for i in range(min(count, len(movable)))]
    sites = []
    for number, where in enumerate(chosen):
        block = lens.map.blocks[where.layer]
        for stream in KINDS:
            head = number * 5 % block.n_heads if stream == "head_z" else None
            site = Site(where.layer, stream, where.label, head)
            if stream in block.entries and can_be_planted(lens, site):
                sites.append(site)
    return sites
