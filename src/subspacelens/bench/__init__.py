"""The engine measured against others that do the same, the audit against planted truth."""

from .audit import bench_audit
from .engine import bench_engine, profile_step
from .facts import bench_facts
from .figure import growth_figure, roc_figure
from .fits import bench_fits
from .table import audit_table

__all__ = [
    "audit_table",
    "bench_audit",
    "bench_engine",
    "bench_facts",
    "bench_fits",
    "growth_figure",
    "profile_step",
    "roc_figure",
]
