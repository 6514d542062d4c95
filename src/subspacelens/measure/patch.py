"""The verb of the library: patch a site, and see what it does to the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

from torch import Tensor

from ..certify import require
from ..core.errors import SubspaceError
from ..core.site import Site
from ..engine.capture import Capture, capture
from ..engine.effect import Effect
from ..engine.metrics import Chosen, metric_of
from ..engine.patches import Full, Patch, SubspacePatch
from ..engine.several import Effects
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace, check_basis
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Task

Change = Subspace | Patch | Tensor


@overload
def patch(
    lens: LensModel,
    pairs: Task | PairSet | TaskCapture | Capture,
    site: Site | str,
    change: Change | None = None,
    *,
    shifted: bool = False,
    memory: int | None = None,
    metric: Chosen = None,
) -> Effect: ...


@overload
def patch(
    lens: LensModel,
    pairs: Task | PairSet | TaskCapture | Capture,
    site: Site | str,
    change: Mapping[str, Change],
    *,
    shifted: bool = False,
    memory: int | None = None,
    metric: Chosen = None,
) -> Effects: ...


def patch(
    lens: LensModel,
    pairs: Task | PairSet | TaskCapture | Capture,
    site: Site | str,
    change: Change | Mapping[str, Change] | None = None,
    *,
    shifted: bool = False,
    memory: int | None = None,
    metric: Chosen = None,
) -> Effect | Effects:
    """Patches one site on all pairs and says what the model answers.

    `metric`: what `.change` is of, by default the logit difference (`engine.metrics.metric_of`).

    `pairs`: a task, of which the test pairs are taken, a set of pairs, or a capture of either,
    which saves the model's full passes. `change`: a `Subspace` of this model and site, an
    orthonormal basis (dim, k), float32, any `Patch`, or None for the whole component; or several by
    name, in one batched replay. `shifted` allows a label in different columns of base and source.
    `memory` is the budget of the replay in bytes; a capture has its own.

    Returns an `Effect`: `.fldd`, `.nats`, `.iia`, `.iia_pair`, `.change` with 95 % intervals over
    base prompts, `.metric(...)` for another metric, `.frame()` with a row a pair, `.examples(5)`.
    For several changes a dict of them, whose `.frame()` has a row a pair and patch.

    Raises `SiteError` for a site that the model lacks or that fails a proof, `TaskError` for pairs
    without its label, `SubspaceError` for a subspace of another model or site, `ModelError` for a
    capture of another model.

    >>> effect = sl.patch(lens, task, "L18.mlp_act@S2", subspace)
    >>> effect.fldd.value, effect.frame(), effect.examples(5)
    >>> both = sl.patch(lens, task, "L18.mlp_act@S2", {"whole": patches.Full(), "ours": subspace})
    >>> both.frame().to_pandas()
    """
    site = Site.of(site)
    require(lens, site)
    changes = change if isinstance(change, Mapping) else {"": change}
    patches = {name: patch_of(lens, site, each) for name, each in changes.items()}
    if isinstance(pairs, TaskCapture):
        captured = pairs.test
    elif isinstance(pairs, Capture):
        captured = pairs
    else:
        test = pairs.test if isinstance(pairs, Task) else pairs
        captured = capture(lens, test, [site], shifted=shifted, memory=memory)
    replay = captured.at(site, lens).measured_by(metric_of(metric))
    effects = replay.effects(patches)
    return Effects(effects) if isinstance(change, Mapping) else effects[""]


def patch_of(lens: LensModel, site: Site, change: Change | None) -> Patch:
    """The patch that a change at a site is. Raises `SubspaceError` for a subspace of another model
    or site, and for a tensor that is no orthonormal basis."""
    if change is None:
        return Full()
    if isinstance(change, Subspace):
        change.check(lens)
        if change.site != site:
            raise SubspaceError(f"the subspace is at {change.site}, not at {site}")
        return SubspacePatch(change.basis)
    if isinstance(change, Tensor):
        basis = change[:, None] if change.ndim == 1 else change
        check_basis(basis, f"the basis at {site}")
        return SubspacePatch(basis)
    return change
