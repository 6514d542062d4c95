"""How common the illusion is in a model, with and without training."""

from ..core.modules import callable_package
from ..measure.maps import InstantMap, instant_map
from .illusions import IllusionMap, illusion_map
from .illusions import illusion_map as survey

__all__ = ["IllusionMap", "InstantMap", "illusion_map", "instant_map", "survey"]

callable_package(__name__, survey)
