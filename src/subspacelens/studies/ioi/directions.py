"""The directions of the study at one label, each with its parts that are read and that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...certify import centred
from ...core.site import Site
from ...engine.capture import Capture
from ...engine.patches import Patch
from ...fit import das, mean_difference
from ...fit.subspace import Subspace, made_by
from ...measure.effects import named_patches
from ...measure.splits import Decomposition, exact_split, proxy_split
from ...model.lens import LensModel
from ...tasks import PairSet
from .circuit import Place
from .heads import Head, score_gradients
from .plan import Sizes


@dataclass(frozen=True)
class Directions:
    """`mlps`: DAS at the MLPs of a place. `residual`: v_resid (DAS), v_grad and v_mean at its
    bottleneck. `outputs`: v_grad in the residual stream right behind each MLP. There is no v_grad
    where no name mover's score answers to the activation."""

    place: Place
    mlps: dict[Site, Subspace]
    residual: dict[str, Subspace]
    outputs: dict[Site, Subspace]

    @property
    def main(self) -> Site:
        """The MLP at which DAS got furthest on its training pairs."""
        return min(self.mlps, key=lambda site: float(self.mlps[site].fit["last_loss"]))

    @property
    def all(self) -> dict[Site, Subspace]:
        """The DAS direction of every site."""
        return self.mlps | {self.place.bottleneck: self.residual["v_resid"]}


def find_directions(
    captured: Capture,
    place: Place,
    name_movers: tuple[Head, ...],
    sizes: Sizes,
    *,
    seed: int = 0,
) -> Directions:
    """DAS with the logit difference at every site of a place; v_grad, v_mean at its bottleneck."""
    lens, site = captured.lens, place.bottleneck

    def search(where: Site) -> Subspace:
        return das(lens, captured, where, seed=seed, steps=sizes.steps)

    behind = {mlp: Site(mlp.layer, "resid_post", mlp.label) for mlp in place.mlps}
    grads = v_grads(lens, captured.pairs[: sizes.heads], [site, *behind.values()], name_movers)
    residual = {"v_resid": search(site)}
    if site in grads:
        residual["v_grad"] = grads[site]
    residual["v_mean"] = mean_difference(lens, captured, site)
    outputs = {mlp: grads[where] for mlp, where in behind.items() if where in grads}
    return Directions(place, {mlp: search(mlp) for mlp in place.mlps}, residual, outputs)


def v_grads(
    lens: LensModel, pairs: PairSet, sites: Sequence[Site], heads: tuple[Head, ...]
) -> dict[Site, Subspace]:
    """v_grad at every site that the heads' scores answer to: how the activation moves the score of
    the first name minus that of the second, at their query at END as the paper has it or through
    whatever lies between. Mean over the pairs of each class, then over classes, unit for each head,
    mean over heads (arXiv 2311.17030, released code)."""
    z = torch.tensor([pair.z[0] for pair in pairs.pairs if pair.z is not None])
    fit = dict(method="score-gradient", heads=" ".join(f"{layer}.{head}" for layer, head in heads))
    subspaces = {}
    for site, grads in score_gradients(lens, pairs, tuple(dict.fromkeys(sites)), heads).items():
        by_head = torch.stack([grads[:, z == which].mean(1) for which in z.unique()]).sum(0)
        if not by_head.any():
            continue
        unit = torch.nn.functional.normalize(by_head, dim=1)
        subspaces[site] = made_by(lens, site, unit.mean(0)[:, None], pairs.sha256, fit)
    return subspaces


def parts_of(lens: LensModel, place: Place, subspace: Subspace) -> Decomposition:
    """Exact at an MLP; at the bottleneck by what the place's readers read."""
    basis = subspace.basis.double()
    if subspace.site.stream == "mlp_act":
        return exact_split(lens, subspace.site, basis, centred=centred(lens))
    return proxy_split(place.readers, basis, len(place.readers))


def table_patches(lens: LensModel, directions: Directions) -> dict[Site, dict[str, Patch | None]]:
    """Every patch of the study's table by site and name."""
    place = directions.place
    patches = {site: _mlp_patches(parts_of(lens, place, v)) for site, v in directions.mlps.items()}
    at = patches[place.bottleneck] = {}
    for name, subspace in directions.residual.items():
        parts = parts_of(lens, place, subspace)
        named = named_patches(parts, parts.basis)
        at |= {
            "full": named["full"],
            name: named["subspace"],
            f"{name} along readers": named.get("row"),
            f"{name} null": named.get("null"),
        }
    return patches


def _mlp_patches(parts: Decomposition) -> dict[str, Patch | None]:
    names = {
        "full": "full",
        "subspace": "v_MLP",
        "row": "v_MLP row",
        "null": "v_MLP null",
    }
    patches = named_patches(parts, parts.basis)
    return {name: patches.get(key) for key, name in names.items()}
