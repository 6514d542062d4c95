"""The engine measured against others that do the same, the audit against planted truth, the instant
map against fits."""

from .additions import additions_table, bench_additions
from .audit import bench_audit
from .commands import bench_commands
from .constraints import bench_constraints, constraints_table
from .coverage import bench_coverage
from .engine import bench_engine, profile_step
from .environments import peer_pythons
from .facts import bench_facts
from .figure import calibration_figure, growth_figure, roc_figure
from .find import bench_find
from .fits import bench_fits
from .instant import JUDGED, bench_instant, instant_table
from .memory import bench_memory
from .table import audit_table, fits_rows

__all__ = [
    "JUDGED",
    "additions_table",
    "audit_table",
    "bench_additions",
    "bench_audit",
    "bench_commands",
    "bench_constraints",
    "bench_coverage",
    "bench_engine",
    "bench_facts",
    "bench_find",
    "bench_fits",
    "bench_instant",
    "bench_memory",
    "calibration_figure",
    "constraints_table",
    "fits_rows",
    "growth_figure",
    "instant_table",
    "peer_pythons",
    "profile_step",
    "roc_figure",
]
