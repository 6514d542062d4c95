"""The audit of a subspace: effects, evidence, verdict."""

from ..core.modules import callable_package
from .judging import Judgement, judge
from .run import Audit, audit
from .screening import Screen, screen

__all__ = ["Audit", "Judgement", "Screen", "audit", "judge", "screen"]

callable_package(__name__, audit)
