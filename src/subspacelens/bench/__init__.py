"""The engine measured against others that do the same, the audit against planted truth."""

from .audit import bench_audit
from .engine import bench_engine, profile_step
from .figure import growth_figure, roc_figure
from .table import audit_table

__all__ = [
    "audit_table",
    "bench_audit",
    "bench_engine",
    "growth_figure",
    "profile_step",
    "roc_figure",
]
