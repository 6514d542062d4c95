"""Patching maps: where to look first."""

from .making import DEFAULT_PAIRS, patching_map
from .value import PatchingMap, SiteEffect, StreamEffects

__all__ = ["DEFAULT_PAIRS", "PatchingMap", "SiteEffect", "StreamEffects", "patching_map"]
