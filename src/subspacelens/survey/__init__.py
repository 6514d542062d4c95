"""How common the illusion is in a model, with and without training."""

from ..core.modules import callable_package
from .illusions import IllusionMap, illusion_map
from .illusions import illusion_map as survey

__all__ = ["IllusionMap", "illusion_map", "survey"]

callable_package(__name__, survey)
