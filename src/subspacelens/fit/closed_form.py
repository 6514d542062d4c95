"""Ways of finding a subspace that need no optimiser: statistics of activations and gradients."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ..core.errors import SubspaceError, TaskError
from ..core.first_order import first_order
from ..core.geometry import haar, svd
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.replay import Replay
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .change import classes
from .loss import Loss, Objective, slopes
from .registry import Count, Seed, register
from .subspace import Subspace, made_by

ROUNDS = 3
"""How often `self_consistent` solves again: it takes one gradient more."""


@register("mean-difference", classes=True, between=True)
def mean_difference(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """What differs between the class means of the activation: of two values of z the direction from
    one mean to the other, z = 1 minus z = 0; of c values the `dim` leading right singular vectors
    of the c means less their own mean, at most c - 1.

    Takes all 2n prompts, bases and sources. `seed` changes nothing. Raises `SubspaceError` for more
    dimensions than that, `TaskError` for pairs without z, and what every fit raises (`Fit`).

    >>> mean_difference(lens, captures.train, "L17.resid_post@S2")
    """
    replay = captured.at(site, lens)
    x, z = by_value(replay)
    values = int(z.max()) + 1
    if dim > values - 1:
        raise SubspaceError(
            f"mean-difference finds {values - 1 if values > 2 else 'one'} "
            f"direction{'s' * (values > 2)} of a z of {values} values, not --dim {dim}"
        )
    if values == 2:
        basis = between_means(x, z)[:, None]
    else:
        means = torch.stack([x[z == value].mean(dim=0) for value in range(values)])
        basis = _leading(means - means.mean(dim=0), dim, f"the class means at {site}")
    return made_by(lens, site, basis, replay.pairs.sha256, dict(method="mean-difference"))


@register("pca")
def pca(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """Where base and source differ most: the `dim` leading right singular vectors of Δ (n, d).

    Δ, source minus base, is not centred. `seed` changes nothing. Raises `SubspaceError` if Δ spans
    fewer dimensions, and what every fit raises (`Fit`).

    >>> pca(lens, captures.train, "L17.resid_post@S2", dim=3)
    """
    replay = captured.at(site, lens)
    basis = _leading(replay.difference, dim, f"the differences at {site}")
    return made_by(lens, site, basis, replay.pairs.sha256, dict(method="pca"))


@register("gradient", gradients=lambda pairs, options: pairs)
def gradient(
    lens: LensModel,
    captured: Capture,
    site: Site,
    *,
    dim: Count = 1,
    seed: Seed = 0,
) -> Subspace:
    """Where the answer reacts most: the `dim` leading right singular vectors of the gradients.

    Row i of the gradients (n, d) is the slope of pair i's logit(answer) - logit(target) at its base
    activation, in nats a unit; singular vectors let pairs of either direction count alike. `seed`
    changes nothing. Raises `SubspaceError` if the gradients span fewer dimensions, and what every
    fit raises (`Fit`).

    >>> gradient(lens, captures.train, "L17.resid_post@S2")
    """
    replay = captured.at(site, lens)
    basis = _leading(replay.gradients(), dim, f"the gradients at {site}")
    return made_by(lens, site, basis, replay.pairs.sha256, dict(method="gradient"))


def _leading(rows: Tensor, dim: int, what: str) -> Tensor:
    """The first `dim` right singular vectors of (n, d), float64 (d, dim)."""
    _, s, vh = svd(rows.cpu().double())
    rank = int((s > 1e-6 * s[0]).sum()) if s[0] > 0 else 0
    if not 1 <= dim <= rank:
        raise SubspaceError(f"{what} span {rank} dimensions: a subspace of {dim} does not fit")
    return vh[:dim].T


@register("closed-form", gradients=lambda pairs, options: pairs)
def closed_form(
    lens: LensModel,
    captured: Capture,
    site: Site,
    *,
    dim: Count = 1,
    seed: Seed = 0,
    loss: Loss = "logit-difference",
) -> Subspace:
    """The subspace whose patch lowers the loss most, to first order: DAS without an optimiser.

    The `dim` leading eigenvectors of (1/2n) Σ (Δᵢ gᵢᵀ + gᵢ Δᵢᵀ), Δ source minus base activation and
    g minus the gradient of `loss` (see `das`) at the base: of one pair, halfway between the two.
    `fit` of the subspace holds `predicted` and `whole`, by how much the loss falls to first order
    under its patch and under that of the whole component, and `cosine` (see `FirstOrder`). `seed`
    changes nothing. Raises `SubspaceError` where the gradient is not finite, and what every fit
    raises (`Fit`).

    >>> closed_form(lens, captures.train, "L20.mlp_act@END", dim=2)
    """
    replay = captured.at(site, lens)
    difference = replay.difference
    _, gradients = slopes(loss, replay, torch.zeros_like(difference))
    found = first_order(difference, gradients)
    record = dict(
        method="closed-form", loss=loss, passes=1, predicted=found.effect(dim), whole=found.whole,
        cosine=found.cosine,
    )  # fmt: skip
    return made_by(lens, site, found.basis(dim), replay.pairs.sha256, record)


def self_consistent(goal: Objective, dim: int) -> Tensor:
    """A basis, float64 (m, dim) of where it must lie, that is nearly the closed form of the
    gradient of the loss at its own patch, as the best one is: where an attention pattern is
    saturated, the gradient at the base says little of what a patch does, and a fit that starts from
    its closed form can stay on a plateau.

    Begins with the gradient halfway to the patch of all that may be patched; then `ROUNDS` times
    the gradient becomes the mean of itself and that at the patch of the last basis.
    """
    replay, within = goal.replay, goal.within
    difference = replay.difference.double()
    inside = difference if within is None else difference @ within.to(difference)

    def sloped(delta: Tensor) -> Tensor:
        _, found = slopes(goal.loss, replay, goal.lifted(delta.T).T)
        return found if within is None else found.double() @ within.to(difference)

    gradients = sloped(inside / 2)
    for _ in range(ROUNDS):
        basis = first_order(inside, gradients).basis(dim).to(difference.device)
        gradients = (gradients + sloped((inside @ basis) @ basis.T)) / 2
    return first_order(inside, gradients).basis(dim)


@register("probe", classes=True)
def probe(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """The weights of a logistic regression of z on the activation of all 2n prompts: of two values
    of z one direction, of c values up to c - 1, the leading singular vectors of the c rows.

    Further dimensions are of a regression on what is orthogonal to those before (iterative
    null-space projection, Ravfogel et al. 2020, arXiv 2004.07667). `seed` changes nothing. Raises
    `TaskError` for pairs without z, and what every fit raises (`Fit`).

    >>> probe(lens, captures.train, "L17.resid_post@S2", dim=2)
    """
    replay = captured.at(site, lens)
    x, z = by_value(replay)
    x = x.cpu().double()
    x = x - x.mean(dim=0)
    basis = x.new_zeros(x.shape[1], 0)
    while (left := dim - basis.shape[1]) > 0:
        rest = x - (x @ basis) @ basis.T
        model = LogisticRegression(C=1.0, max_iter=2000)
        model.fit((rest / rest.std()).numpy(), z.numpy())
        rows = torch.from_numpy(model.coef_)
        rows = rows - (rows @ basis) @ basis.T
        if len(rows) == 1:
            more = rows.T / rows.norm()
        else:
            more = _leading(rows, min(left, len(rows) - 1), f"the weights of a probe at {site}")
        basis = torch.cat([basis, more], dim=1)
    return made_by(lens, site, basis, replay.pairs.sha256, dict(method="probe"))


@register("random", blind=True)
def random(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """A subspace uniformly at random (Haar), drawn by `seed`: what one does that knows nothing.

    Raises what every fit raises (`Fit`).

    >>> random(lens, captures.train, "L17.resid_post@S2", dim=2, seed=5)
    """
    basis = haar(lens.map.dim(site), dim, 1, torch.Generator().manual_seed(seed))[0]
    return made_by(lens, site, basis, captured.pairs.sha256, dict(method="random", seed=seed))


def by_value(replay: Replay) -> tuple[Tensor, Tensor]:
    """Activations of all bases and then all sources, (2n, d), and which value z has, counted from 0
    in the order of `classes`, (2n,). Raises `TaskError` unless every pair has z, of two values or
    more."""
    return torch.cat([replay.base, replay.source]), _values(replay.pairs).T.flatten()


def by_class(replay: Replay) -> tuple[Tensor, Tensor]:
    """The same where z has two values, 0 and 1. Raises `TaskError` where it has not."""
    z = two_classes(replay.pairs)
    return torch.cat([replay.base, replay.source]), z.T.flatten()


def between_means(x: Tensor, z: Tensor) -> Tensor:
    """The mean of the rows of `x` (m, d) with z = 1 less that of those with z = 0, (d,)."""
    return x[z == 1].mean(dim=0) - x[z == 0].mean(dim=0)


def two_classes(pairs: PairSet) -> Tensor:
    """Which of the two values z has in base and source, 0 or 1, (n, 2). Raises as `by_class`."""
    found, values = _values(pairs), pairs.classes
    if len(values) > 2:
        raise TaskError(
            f"task {pairs.name}: z has {len(values)} values ({', '.join(map(str, values[:4]))}"
            f"{', ...' * (len(values) > 4)}), and this needs two: take the pairs of two of them"
        )
    return found


def _values(pairs: PairSet) -> Tensor:
    """Which of its values z has in base and source, (n, 2). Raises `TaskError` as `classes`."""
    values = pairs.classes
    return torch.tensor([[values.index(value) for value in both] for both in classes(pairs)])
