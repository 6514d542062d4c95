"""The audit of a subspace: effects, evidence, verdict."""

from .run import Audit, Judgement, audit, judge

__all__ = ["Audit", "Judgement", "audit", "judge"]
