"""Tasks: where the pairs of base and source prompts come from."""

from .contrast import CONTRASTS, contrast
from .ioi import ioi
from .pairs import pairs_task, read_pairs
from .pairset import Pair, PairSet, Prompt, Task

__all__ = [
    "CONTRASTS",
    "Pair",
    "PairSet",
    "Prompt",
    "Task",
    "contrast",
    "ioi",
    "pairs_task",
    "read_pairs",
]
