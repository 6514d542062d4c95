"""The audit of an addition: of a steering vector, what it writes and whether nature writes it."""

from .judging import judge
from .run import AdditionAudit, audit_addition
from .texts import audit_texts

__all__ = ["AdditionAudit", "audit_addition", "audit_texts", "judge"]
