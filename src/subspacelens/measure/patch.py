"""The verb of the library: patch a site, or several, and see what it does to the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import overload

from torch import Tensor

from ..certify import require
from ..core.errors import SiteError, SubspaceError
from ..core.places import Place, Span, parse_places
from ..core.site import Site
from ..engine.capture import Capture, capture
from ..engine.effect import Effect
from ..engine.joint import JointEffect, joint_replay
from ..engine.metrics import Chosen, Metric, metric_of
from ..engine.patches import Full, Patch, SubspacePatch, reads_source
from ..engine.several import Effects
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace, check_basis
from ..interop.names import site_named
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Task

Change = Subspace | Patch | Tensor
Pairs = Task | PairSet | TaskCapture | Capture


@overload
def patch(
    lens: LensModel,
    pairs: Pairs,
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
    pairs: Pairs,
    site: Site | str,
    change: Mapping[str, Change],
    *,
    shifted: bool = False,
    memory: int | None = None,
    metric: Chosen = None,
) -> Effects: ...


@overload
def patch(
    lens: LensModel,
    pairs: Pairs,
    site: Mapping[str, Change | None] | Mapping[Site, Change | None],
    *,
    shifted: bool = False,
    memory: int | None = None,
    metric: Chosen = None,
) -> JointEffect: ...


def patch(
    lens: LensModel,
    pairs: Pairs,
    site: Site | str | Mapping[str, Change | None] | Mapping[Site, Change | None],
    change: Change | Mapping[str, Change] | None = None,
    *,
    shifted: bool = False,
    memory: int | None = None,
    metric: Chosen = None,
) -> Effect | Effects | dict[str, JointEffect]:
    """Patches one site, or several together, on all pairs and says what the model answers.

    `metric`: what `.change` is of, by default the logit difference (`engine.metrics.metric_of`).

    `pairs`: a task, of which the test pairs are taken, a set of pairs, or a capture of either,
    which saves the model's full passes where one site is patched. `site`: one site, also as other
    tools spell it (`interop.names.site_named`); several labels of one stream
    (`L18.mlp_act@S2+END`), all columns from a label on (`@S2:`) or all (`@*`), with the same change
    at each; or a mapping from any of these to a change of its own. `change`: a
    `Subspace` of this model and site (of the same stream, where there are several labels), an
    orthonormal basis (dim, k), float32, any `Patch`, or None for the whole component; or several by
    name, in one batched replay. `shifted` allows a label in different columns of base and source.
    `memory` is the budget of the replay in bytes; a capture has its own.

    Of patches that go together each takes its source activation from the unpatched source prompt
    and is computed against what stands at its place in the patched pass, as a plain hook would.
    Where none reads its source (`patching.Add`), the prompts need not be aligned.

    Returns an `Effect`: `.fldd`, `.nats`, `.iia`, `.iia_pair`, `.change` with 95 % intervals over
    base prompts, `.metric(...)` for another metric, `.frame()` with a row a pair, `.examples(5)`.
    For several changes a dict of them, whose `.frame()` has a row a pair and patch. Where there are
    several places a `JointEffect`, with `.single` and `.interaction` too.

    Raises `SiteError` for a site that the model lacks, that fails a proof or is there twice,
    `TaskError` for pairs without its label, `SubspaceError` for a subspace of another model or
    site, `ModelError` for a capture of another model.

    >>> effect = sl.patch(lens, task, "L18.mlp_act@S2", subspace)
    >>> effect.fldd.value, effect.frame(), effect.examples(5)
    >>> both = sl.patch(lens, task, "L18.mlp_act@S2", {"whole": patches.Full(), "ours": subspace})
    >>> both.frame().to_pandas()
    >>> joint = sl.patch(lens, task, {"L18.mlp_act@S2": subspace, "L20.resid_post@END": None})
    >>> joint.fldd, joint.single["L18.mlp_act@S2"].fldd, joint.interaction
    """
    captured = pairs.test if isinstance(pairs, TaskCapture) else pairs
    test = captured.test if isinstance(captured, Task) else captured
    labels = (test.pairs if isinstance(test, Capture) else test).labels
    measured = metric_of(metric)
    if isinstance(site, Mapping):
        if change is not None:
            raise SubspaceError("sites that are patched together have their changes in the mapping")
        parsed = ((_places(lens, where, labels), own) for where, own in site.items())
        return _together(lens, test, [*parsed], shifted, memory, measured)
    places = _places(lens, site, labels)
    changes = change if isinstance(change, Mapping) else {"": change}
    if _several(places):
        joint = {
            name: _together(lens, test, [(places, own)], shifted, memory, measured)
            for name, own in changes.items()
        }
        return dict(joint) if isinstance(change, Mapping) else joint[""]
    site = places[0].site
    require(lens, site)
    patches = {name: patch_of(lens, site, each) for name, each in changes.items()}
    if not isinstance(test, Capture):
        test = capture(lens, test, [site], shifted=shifted, memory=memory)
    effects = test.at(site, lens).measured_by(measured).effects(patches)
    return Effects(effects) if isinstance(change, Mapping) else effects[""]


def _places(lens: LensModel, where: Site | str, labels: tuple[str, ...]) -> tuple[Place, ...]:
    if isinstance(where, Site):
        return (Place(where),)
    stream, at, columns = where.strip().partition("@")
    if not at or stream.startswith("L"):
        return parse_places(where, labels)
    named = str(site_named(f"{stream}@END", lens)).removesuffix("@END")
    return parse_places(f"{named}@{columns}", labels)


def _several(places: tuple[Place, ...]) -> bool:
    """Whether these are more columns than that of one label."""
    return len(places) > 1 or any(place.span is not Span.AT for place in places)


def _together(
    lens: LensModel,
    pairs: PairSet | Capture,
    changes: list[tuple[tuple[Place, ...], Change | None]],
    shifted: bool,
    memory: int | None,
    metric: Metric | None,
) -> JointEffect:
    """Patches at all places at once: each change at several."""
    chosen: dict[Place, Patch] = {}
    for places, change in changes:
        several = _several(places)
        for place in places:
            require(lens, place.site)
            if place in chosen:
                raise SiteError(f"site {place} is there twice: one patch goes to one place")
            chosen[place] = patch_of(lens, place.site, change, any_label=several)
    if isinstance(pairs, Capture):
        pairs.check(lens)
        pairs, memory = pairs.pairs, pairs.memory
    replay = joint_replay(
        lens, pairs, chosen, shifted=shifted, memory=memory,
        sources=any(map(reads_source, chosen.values())),
    )  # fmt: skip
    return replay.patching(list(chosen.values())).measured_by(metric).together()


def patch_of(
    lens: LensModel, site: Site, change: Change | None, *, any_label: bool = False
) -> Patch:
    """The patch that a change at a site is; `any_label` allows a subspace of another label. Raises
    `SubspaceError` for a subspace of another model or site, and for a tensor that is no orthonormal
    basis."""
    if change is None:
        return Full()
    if isinstance(change, Subspace):
        change.check(lens)
        made_for = replace(change.site, label=site.label) if any_label else change.site
        if made_for != site:
            raise SubspaceError(f"the subspace is at {change.site}, not at {site}")
        return SubspacePatch(change.basis)
    if isinstance(change, Tensor):
        basis = change[:, None] if change.ndim == 1 else change
        check_basis(basis, f"the basis at {site}")
        return SubspacePatch(basis)
    return change
