"""The engine measured against others that do the same, in one run on one machine."""

from .engine import bench_engine, profile_step
from .figure import growth_figure

__all__ = ["bench_engine", "growth_figure", "profile_step"]
