"""The audit of a subspace: effects, evidence, verdict."""

from ..core.modules import callable_package
from .judging import Judgement, judge
from .run import Audit, audit

__all__ = ["Audit", "Judgement", "audit", "judge"]

callable_package(__name__, audit)
