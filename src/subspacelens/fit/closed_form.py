"""Ways of finding a subspace that need no optimiser: statistics of the activations alone."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ..core.errors import SubspaceError, TaskError
from ..core.geometry import haar
from ..core.site import Site
from ..engine.capture import Capture
from ..model.lens import LensModel
from .registry import Count, Seed, register
from .subspace import Subspace, made_by


@register("mean-difference", classes=True, one_direction=True)
def mean_difference(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """The unit difference of the class means of the activation (z = 1 minus z = 0). One
    dimension only; the pairs must carry z."""
    x, z = by_class(captured, site)
    direction = x[z == 1].mean(dim=0) - x[z == 0].mean(dim=0)
    return made_by(
        lens, site, direction[:, None], captured.pairs.sha256, dict(method="mean-difference")
    )


@register("pca")
def pca(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """The leading right singular vectors of the differences Δ (n, d), not centred."""
    basis = _leading(captured.difference(site), dim, f"the differences at {site}")
    return made_by(lens, site, basis, captured.pairs.sha256, dict(method="pca"))


@register("gradient", gradients=lambda pairs, options: pairs)
def gradient(
    lens: LensModel,
    captured: Capture,
    site: Site,
    *,
    dim: Count = 1,
    seed: Seed = 0,
) -> Subspace:
    """The leading right singular vectors of the per-pair gradients of the logit difference with
    respect to the base activation, so that pairs of either direction count alike."""
    basis = _leading(captured.at(site, lens).gradients(), dim, f"the gradients at {site}")
    return made_by(lens, site, basis, captured.pairs.sha256, dict(method="gradient"))


def _leading(rows: Tensor, dim: int, what: str) -> Tensor:
    """The first `dim` right singular vectors of (n, d), float64 (d, dim)."""
    _, s, vh = torch.linalg.svd(rows.cpu().double(), full_matrices=False)
    rank = int((s > 1e-6 * s[0]).sum()) if s[0] > 0 else 0
    if not 1 <= dim <= rank:
        raise SubspaceError(f"{what} span {rank} dimensions: a subspace of {dim} does not fit")
    return vh[:dim].T


@register("probe", classes=True)
def probe(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """Logistic regression of z on the activation; for more dimensions again on what is orthogonal
    to the directions found before (iterative null-space projection)."""
    x, z = by_class(captured, site)
    x = x.cpu().double()
    x = x - x.mean(dim=0)
    found = x.new_zeros(x.shape[1], 0)
    for _ in range(dim):
        rest = x - (x @ found) @ found.T
        model = LogisticRegression(C=1.0, max_iter=2000)
        model.fit((rest / rest.std()).numpy(), z.numpy())
        direction = torch.from_numpy(model.coef_.T)
        direction = direction - found @ (found.T @ direction)
        found = torch.cat([found, direction / direction.norm()], dim=1)
    return made_by(lens, site, found, captured.pairs.sha256, dict(method="probe"))


@register("random", blind=True)
def random(
    lens: LensModel, captured: Capture, site: Site, *, dim: Count = 1, seed: Seed = 0
) -> Subspace:
    """A Haar-random subspace: what a subspace does that knows nothing."""
    basis = haar(lens.map.dim(site), dim, 1, torch.Generator().manual_seed(seed))[0]
    return made_by(lens, site, basis, captured.pairs.sha256, dict(method="random", seed=seed))


def by_class(captured: Capture, site: Site) -> tuple[Tensor, Tensor]:
    """Activations of all bases and sources, (2n, d), and their z, (2n,). Raises `TaskError` if a
    pair has no z or one class is empty."""
    values = [pair.z for pair in captured.pairs.pairs]
    if any(z is None for z in values):
        raise TaskError(
            f"task {captured.pairs.name}: pair {values.index(None)} has no z, which this needs"
        )
    z = torch.tensor([z[0] for z in values] + [z[1] for z in values])  # type: ignore[index]
    if z.min() == z.max():
        raise TaskError(f"task {captured.pairs.name}: z is {int(z[0])} in every prompt")
    return torch.cat([captured.base[site], captured.source[site]]), z
