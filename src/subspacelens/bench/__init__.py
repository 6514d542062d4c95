"""How fast the engine is, against plain hooks, pyvene and the bare matrix products."""

from .engine import bench_engine
from .facts import bench_facts
from .figure import growth_figure

__all__ = ["bench_engine", "bench_facts", "growth_figure"]
