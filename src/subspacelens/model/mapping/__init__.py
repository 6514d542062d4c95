"""Finds the parts of a causal language model by watching it run, and proves what it found.

No table of class names: blocks are the modules in which the key-value cache is written, the
attention is the child that writes it, projections are the last linear maps of either branch. Each
role is then proven on a small forward pass (`roles`, `tail`): the identity of a block whose two
branches are muted, the additivity of a projection, the final chain from the last block to the
logits. What cannot be proven is left out, with the reason, and refused by name when asked for.
"""

from .build import build_map

__all__ = ["build_map"]
