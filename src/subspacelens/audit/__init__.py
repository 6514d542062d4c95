"""The audit of a subspace: effects, evidence, verdict."""

from ..core.modules import callable_package
from .run import Audit, Judgement, audit, judge

__all__ = ["Audit", "Judgement", "audit", "judge"]

callable_package(__name__, audit)
