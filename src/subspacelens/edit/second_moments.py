"""Σ = E[x xᵀ] of a site's activations over text: what an edit must leave alone.

Streaming and in float64. Uncentred, as rank-1 edits need it (arXiv 2311.17030 §6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import EditError
from ..core.files import cache_folder
from ..core.identity import Identity
from ..core.progress import track
from ..core.site import Site
from ..engine.buckets import place_of
from ..engine.text import Corpus, from_cache, to_cache
from ..model.hooks import check_ready, exclusive, stopping_after
from ..model.lens import LensModel

FORMAT = "subspacelens.second-moment/2"
SINGULAR = 1e10
"""A condition number above this counts as singular."""


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """The uncentred second moment of an activation, Σ = `matrix` = E[x xᵀ], float64 (d, d), over
    `tokens` tokens; `fourth` is E[‖x‖⁴], in the fourth power of the activation's unit.

    `shrinkage` s in [0, 1] is what `solve` uses: (1 - s) Σ + s tr(Σ)/d I.
    """

    matrix: Tensor = field(repr=False)
    tokens: int
    fourth: float = field(repr=False)
    shrinkage: float = 0.0

    @classmethod
    def of(cls, matrix: Tensor, tokens: int, fourth: float) -> SecondMoment:
        """Shrunken by Ledoit and Wolf's intensity where Σ is singular, and not at all elsewhere."""
        plain = cls(matrix, tokens, fourth)
        if plain.condition is not None and plain.condition < SINGULAR:
            return plain
        return plain.shrunken(plain.ledoit_wolf)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """Of the unshrunken Σ, ascending, (d,)."""
        return torch.linalg.eigvalsh(self.matrix)

    @property
    def condition(self) -> float | None:
        """Largest over smallest eigenvalue of the unshrunken Σ; None where the smallest is not
        above zero, up to rounding."""
        smallest, largest = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        return largest / smallest if smallest > largest * 1e-30 else None

    @property
    def ledoit_wolf(self) -> float:
        """The shrinkage of Ledoit and Wolf (2004) for data of mean zero."""
        dim = len(self.matrix)
        square = float(self.matrix.square().sum())
        spread = square - float(self.matrix.trace()) ** 2 / dim
        noise = (self.fourth - square) / self.tokens
        return 1.0 if spread <= 0 else min(1.0, max(0.0, noise / spread))

    def shrunken(self, shrinkage: float) -> SecondMoment:
        if not 0 <= shrinkage <= 1:
            raise EditError(f"shrinkage {shrinkage} is not between 0 and 1")
        return SecondMoment(self.matrix, self.tokens, self.fourth, shrinkage)

    @cached_property
    def effective(self) -> Tensor:
        """The matrix that `solve` inverts, float64 (d, d)."""
        scale = self.matrix.trace() / len(self.matrix)
        identity = torch.eye(len(self.matrix), dtype=torch.float64)
        return (1 - self.shrinkage) * self.matrix + self.shrinkage * scale * identity

    @cached_property
    def _factor(self) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(self.effective)
        if int(failed):
            raise EditError(
                f"the second moment over {self.tokens} tokens is singular: give more text, "
                "or shrink it"
            )
        return factor

    def solve(self, x: Tensor) -> Tensor:
        """Σ⁻¹ x for columns x (d, k), float64. Raises `EditError` where Σ is singular."""
        return torch.cholesky_solve(x.double().cpu(), self._factor)


def second_moments(
    lens: LensModel, layers: Iterable[int], corpus: Corpus, *, stream: str = "mlp_act"
) -> dict[int, SecondMoment]:
    """Σ of one stream at several layers, by layer, in one pass over the text.

    Kept in the cache folder under the identity of the model as it is now and the hash of the text;
    under somebody else's hooks nothing is read or kept there. Raises `SiteError` for a layer or
    stream that the model lacks.

    >>> moments = second_moments(lens, [6, 9], embedded_corpus(lens))
    >>> moments[6].matrix.shape
    torch.Size([1536, 1536])
    """
    sites = {layer: Site(layer, stream, "END") for layer in dict.fromkeys(layers)}
    for site in sites.values():
        lens.map.block(site)
    identity = lens.identity
    paths = {layer: _path(identity, site, corpus) for layer, site in sites.items()}
    kept = {layer: _load(path, identity) for layer, path in paths.items()}
    moments = {layer: moment for layer, moment in kept.items() if moment is not None}
    missing = {layer: site for layer, site in sites.items() if layer not in moments}
    if not missing:
        return moments
    fresh = _measured(lens, missing, corpus)
    for layer, moment in fresh.items():
        fourth = torch.tensor(moment.fourth, dtype=torch.float64)
        tokens = torch.tensor(moment.tokens)
        parts = {"matrix": moment.matrix, "fourth": fourth, "tokens": tokens}
        to_cache(paths[layer], FORMAT, identity, parts)
    both = moments | fresh
    return {layer: both[layer] for layer in sites}


def _path(identity: Identity, site: Site, corpus: Corpus) -> Path:
    name = f"{corpus.sha256[:16]}-L{site.layer}.{site.stream}.safetensors"
    return cache_folder() / "second-moments" / identity.key[:16] / name


def _load(path: Path, identity: Identity) -> SecondMoment | None:
    parts = from_cache(path, FORMAT, identity)
    if parts is None:
        return None
    return SecondMoment.of(parts["matrix"], int(parts["tokens"]), float(parts["fourth"]))


def _measured(lens: LensModel, sites: dict[int, Site], corpus: Corpus) -> dict[int, SecondMoment]:
    sums: dict[int, Tensor] = {}
    fourths = dict.fromkeys(sites, 0.0)

    def add(layer: int) -> Callable[[Tensor], None]:
        columns = lens.map.head_slice(sites[layer])

        def accumulate(x: Tensor) -> None:
            rows = x.reshape(-1, x.shape[-1])[:, columns].double()
            product = (rows.T @ rows).cpu()
            sums[layer] = sums[layer] + product if layer in sums else product
            fourths[layer] += float(rows.square().sum(1).square().sum())

        return accumulate

    deepest = lens.map.blocks[max(sites)].module
    with exclusive(lens.model), torch.no_grad(), ExitStack() as stack:
        check_ready(lens.model)
        for layer, site in sites.items():
            place, module = place_of(lens.map, site)
            stack.enter_context(place(module, add(layer)))
        for ids in track(list(corpus.batches()), "second moments"):
            with stopping_after(deepest):
                lens.map.inner(input_ids=ids.to(lens.device), use_cache=False)
    count = corpus.tokens
    return {
        layer: SecondMoment.of(total / count, count, fourths[layer] / count)
        for layer, total in sums.items()
    }
