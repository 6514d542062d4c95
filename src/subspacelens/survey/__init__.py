"""How common the illusion is in a model, with and without training."""

from .illusions import IllusionMap, illusion_map

__all__ = ["IllusionMap", "illusion_map"]
