"""Ways of finding a subspace. Each takes a model, a capture and a site, and gives a `Subspace`.

Every file of this folder is imported, so that a fit is registered by being there.

>>> fit.pca(lens, captures.train, site, dim=2)
>>> fit.FITS["das"].options  # name and default of each setting
"""

from importlib import import_module
from pkgutil import iter_modules

from ..core.modules import callable_package
from .closed_form import closed_form, gradient, mean_difference, pca, probe, random
from .das import das
from .dimensions import ChosenDim, Try, auto_dim, best_dim
from .given import given, given_rows
from .per_pair import PAPER, ClosedForm, PairDirections, Recipe, per_pair
from .registry import FITS, Fit, fit, named, register

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = [
    "FITS",
    "PAPER",
    "ChosenDim",
    "ClosedForm",
    "Fit",
    "PairDirections",
    "Recipe",
    "Try",
    "auto_dim",
    "best_dim",
    "closed_form",
    "das",
    "fit",
    "given",
    "given_rows",
    "gradient",
    "mean_difference",
    "named",
    "pca",
    "per_pair",
    "probe",
    "random",
    "register",
]

callable_package(__name__, fit)
