"""Where a fit may look: orthonormal bases Q (d, m), float64, that a subspace V = Q U must lie in.

DAS finds what reads where base and source differ and writes where the answer reacts, whether or not
these have anything to do with each other. Each constraint takes one way of doing that away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.errors import SiteError, SubspaceError
from ..core.geometry import SUPPORT_AT, Split, Support, orthonormal, unit
from ..engine.replay import Replay
from .change import acting_directions, class_changes, reactions

Constraint = Literal["none", "row", "support", "between-classes", "natural"]
MOVES = 0.95
"""The axes along which nature moves carry this share of the squared norm of what it moves."""


def row(replay: Replay) -> Tensor:
    """The row space of the site's writer W: nothing of V is in the kernel of W, which is read by
    nobody. Raises `SubspaceError` for a site without one."""
    try:
        weight = replay.lens.map.linear_writer(replay.site)
    except SiteError as error:
        raise SubspaceError(f"constraint=row: {error}") from None
    return Split.of(weight).rows


def support(replay: Replay) -> Tensor:
    """The principal axes of the activations of all prompts that explain `SUPPORT_AT` of their
    variance: V does not write where activations do not vary."""
    natural = Support.of(torch.cat([replay.base, replay.source]))
    return natural.axes[:, : natural.components(SUPPORT_AT)]


def between_classes(replay: Replay) -> Tensor:
    """The span of the differences of the class means of each template. Where there is one template
    and z has two values, that is the direction of `mean-difference`. Raises `TaskError` for pairs
    without z and where z has one value."""
    changes = class_changes(replay)
    return orthonormal(unit(changes.unique(dim=0).T))


def natural(replay: Replay) -> Tensor:
    """Of the axes that carry `MOVES` of the squared norm of the differences between base and
    source, the directions along which the answer reacts (`reactions`, `acting_directions`). V does
    not write where nature does not move, and reads nothing that nobody reads. It is in this order:
    a direction that acts and one that is dormant may be read by the same readers, so that the
    gradient is a mixture of both, and only what nature does tells them apart. Takes two gradients
    of each pair."""
    moves = acting_directions(replay.difference, MOVES)
    return moves @ acting_directions(reactions(replay).cpu().double() @ moves)


SPANS: Mapping[str, Callable[[Replay], Tensor]] = {
    "row": row,
    "support": support,
    "between-classes": between_classes,
    "natural": natural,
}
PASSES = {"natural": 2}
"""Gradients of each pair that a constraint takes."""


def span_of(constraint: Constraint, replay: Replay, dim: int) -> Tensor | None:
    """Q of a constraint, None of `none`. Raises `SubspaceError` where it has fewer than `dim`
    dimensions, and what the constraint raises."""
    if constraint == "none":
        return None
    found = SPANS[constraint](replay)
    if found.shape[1] < dim:
        raise SubspaceError(
            f"{replay.site}: constraint={constraint} leaves {found.shape[1]} dimensions: a "
            f"subspace of {dim} does not fit"
        )
    return found


def passes(options: Mapping[str, Any]) -> int:
    """Gradients of each pair that the constraint of these options takes."""
    return PASSES.get(options.get("constraint", "none"), 0)
