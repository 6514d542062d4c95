"""Sweeps: grids of independent cells, kept as they finish, resumed where they stopped."""

from ..core.modules import callable_package
from .grid import FitSpec, Grid, TaskSpec, read_grid
from .plan import Cell, cells_of, facts_of
from .run import Tally, run_sweep
from .run import run_sweep as sweep
from .store import Store
from .table import results

__all__ = [
    "Cell",
    "FitSpec",
    "Grid",
    "Store",
    "Tally",
    "TaskSpec",
    "cells_of",
    "facts_of",
    "read_grid",
    "results",
    "run_sweep",
    "sweep",
]

callable_package(__name__, sweep)
