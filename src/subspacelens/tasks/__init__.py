"""Tasks: where the pairs of base and source prompts come from."""

from .ioi import ioi
from .pairs import pairs_task, read_pairs
from .pairset import Pair, PairSet, Prompt, Task

__all__ = ["Pair", "PairSet", "Prompt", "Task", "ioi", "pairs_task", "read_pairs"]
