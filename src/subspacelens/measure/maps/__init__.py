"""Maps: where to look first, and what will be found there."""

from .instant import InstantMap, SiteScore, StreamScores
from .making import DEFAULT_PAIRS, patching_map
from .scoring import instant_map, refined
from .value import PatchingMap, SiteEffect, StreamEffects

__all__ = [
    "DEFAULT_PAIRS",
    "InstantMap",
    "PatchingMap",
    "SiteEffect",
    "SiteScore",
    "StreamEffects",
    "StreamScores",
    "instant_map",
    "patching_map",
    "refined",
]
