"""Ways of finding a subspace. Each takes a model, a capture and a site, and gives a `Subspace`."""

from .closed_form import gradient, gradients, mean_difference, pca, probe, random
from .das import das
from .given import given
from .per_pair import PAPER, PairDirections, Recipe, per_pair

FITS = {
    "das": das,
    "mean-difference": mean_difference,
    "gradient": gradient,
    "probe": probe,
    "pca": pca,
    "random": random,
}

__all__ = [
    "FITS",
    "PAPER",
    "PairDirections",
    "Recipe",
    "das",
    "given",
    "gradient",
    "gradients",
    "mean_difference",
    "pca",
    "per_pair",
    "probe",
    "random",
]
