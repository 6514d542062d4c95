"""The audit of a subspace: effects, evidence, verdict."""

from .audit import Audit, audit

__all__ = ["Audit", "audit"]
