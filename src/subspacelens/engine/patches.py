"""What is added to the base activation: small frozen patches with one pure method each.

Notation of the paper (arXiv 2311.17030 §2): base h_B, source h_A, Δ = h_A - h_B. Every patch maps
base and source (..., n, dim) to δ (..., n, dim), and the patched activation is h_B + δ.

>>> Full().delta(base, source)  # the whole activation
>>> SubspacePatch(subspace.basis).delta(base, source)  # the projection of Δ on a subspace
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


class Patch(Protocol):
    def delta(self, base: Tensor, source: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NoOp:
    """δ = 0."""

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        return base.new_zeros(base.shape)


@dataclass(frozen=True)
class Full:
    """δ = Δ: the whole component takes the source's value."""

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        return source - base


@dataclass(frozen=True)
class SubspacePatch:
    """δ = V Vᵀ Δ for an orthonormal basis V (dim, k)."""

    basis: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        basis = self.basis.to(base)
        return ((source - base) @ basis) @ basis.T


@dataclass(frozen=True)
class ReadWrite:
    """δ = W Rᵀ Δ: read along the columns of `read` (dim, k), write along those of `write`
    (dim, k). With R = P_R V and W = V it is `read row, write V`; the parts of one V add up to its
    subspace patch, because they are not re-normalised."""

    read: Tensor
    write: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        return ((source - base) @ self.read.to(base)) @ self.write.to(base).T


@dataclass(frozen=True)
class ZeroSetting:
    """δ = -v vᵀ h_B for any v (dim,), not necessarily of unit norm (the paper's §6 patch, used
    for the link to rank-1 edits)."""

    v: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        v = self.v.to(base)
        return -(base @ v)[..., None] * v


@dataclass(frozen=True)
class PairwisePatch:
    """δ = w rᵀ Δ with a `read` r and a `write` w of its own for each pair, both (n, dim): for
    directions that were fitted one a pair, `read` = `write` = v."""

    read: Tensor
    write: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        along = ((source - base) * self.read.to(base)).sum(-1, keepdim=True)
        return along * self.write.to(base)


@dataclass(frozen=True)
class PairwiseZeroSetting:
    """δ = -s v vᵀ h_B with v (n, dim), not of unit norm, and a sign s (n,) of its own for each
    pair: `ZeroSetting` for each."""

    v: Tensor
    sign: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        v = self.v.to(base)
        return -self.sign.to(base)[:, None] * (base * v).sum(-1, keepdim=True) * v


@dataclass(frozen=True)
class Add:
    """δ = α v: a steering vector v (dim,), as long as it is, times `alpha`, whatever the base. With
    `sign` (n,) one of its own for each pair, 1, -1 or 0."""

    vector: Tensor
    alpha: float = 1.0
    sign: Tensor | None = None

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        added = (self.alpha * self.vector.to(base)).expand(base.shape)
        return added.clone() if self.sign is None else self.sign.to(base)[:, None] * added

    def of(self, pairs: Tensor) -> Add:
        """That of the pairs at `pairs` (m,), one of them as often as it is there."""
        return self if self.sign is None else replace(self, sign=self.sign[pairs.cpu()])


@dataclass(frozen=True)
class Ablate:
    """δ = V Vᵀ (μ - h_B) for an orthonormal basis V (dim, k): what is along it becomes that of
    `mean` μ (dim,), by default zero. The source's value instead (resampling) is `SubspacePatch`."""

    basis: Tensor
    mean: Tensor | None = None

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        basis = self.basis.to(base)
        rest = -base if self.mean is None else self.mean.to(base) - base
        return (rest @ basis) @ basis.T


@dataclass(frozen=True)
class Erase:
    """δ = -L R (h_B - b): an oblique projection, such as a LEACE eraser. `left` (dim, k) is what is
    written, `right` (k, dim) what is read, `bias` (dim,) what is left as it is, by default zero."""

    left: Tensor
    right: Tensor
    bias: Tensor | None = None

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        centred = base if self.bias is None else base - self.bias.to(base)
        return -(centred @ self.right.to(base).T) @ self.left.to(base).T


@dataclass(frozen=True)
class SetLatent:
    """δ = (a - f(h_B)) w: one latent of a sparse autoencoder takes the value `value` a, or where
    that is None the source's, f(h_A). What the autoencoder does not reconstruct stays as it is.

    f(h) = e·(h - c) + `bias` where that is above `threshold`, else 0: `encoder` e and `decoder` w
    (dim,), `centre` c (dim,) what is taken from the activation first, by default nothing."""

    encoder: Tensor
    decoder: Tensor
    bias: float = 0.0
    threshold: float = 0.0
    centre: Tensor | None = None
    value: float | None = None

    def latent(self, x: Tensor) -> Tensor:
        """f of activations (..., dim), (...)."""
        centred = x if self.centre is None else x - self.centre.to(x)
        before = centred @ self.encoder.to(x) + self.bias
        return before.where(before > self.threshold, 0)

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        now = self.latent(base)
        wanted = self.latent(source) if self.value is None else self.value
        return (wanted - now)[..., None] * self.decoder.to(base)


def reads_source(patch: Patch) -> bool:
    """Whether what a patch writes depends on the source prompt."""
    if isinstance(patch, SetLatent):
        return patch.value is None
    return not isinstance(patch, NoOp | ZeroSetting | PairwiseZeroSetting | Add | Ablate | Erase)
