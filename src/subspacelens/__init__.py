"""Patch a subspace of a language model's activations; find out whether the effect is real.

>>> import subspacelens as sl
>>> lens = sl.load_model("smollm2")
>>> task = sl.ioi(lens.tokenizer)
>>> site = sl.Site.parse("L18.mlp_act@S2")
>>> captures = sl.capture_task(lens, task, [site])
>>> subspace = sl.das(lens, captures.train, site)
>>> result = sl.audit(lens, captures, subspace)
"""

from . import fit, patching
from .audit import Audit, audit
from .capture import Capture, capture
from .certify import certify
from .errors import (
    LensError,
    ModelError,
    ResultError,
    SiteError,
    SubspaceError,
    TaskError,
)
from .fit import FITS, das
from .model import LensModel, load_model, wrap
from .progress import showing_progress
from .replay import Replay
from .report import write_report
from .results import AuditRecord, load_audit
from .site import STREAMS, Site
from .subspace import Subspace
from .task_capture import TaskCapture, capture_task
from .tasks import Pair, PairSet, Prompt, Task, contrast, ioi, pairs_task, read_pairs

__all__ = [
    "FITS",
    "STREAMS",
    "Audit",
    "AuditRecord",
    "Capture",
    "LensError",
    "LensModel",
    "ModelError",
    "Pair",
    "PairSet",
    "Prompt",
    "Replay",
    "ResultError",
    "Site",
    "SiteError",
    "Subspace",
    "SubspaceError",
    "Task",
    "TaskCapture",
    "TaskError",
    "audit",
    "capture",
    "capture_task",
    "certify",
    "contrast",
    "das",
    "fit",
    "ioi",
    "load_audit",
    "load_model",
    "pairs_task",
    "patching",
    "read_pairs",
    "showing_progress",
    "wrap",
    "write_report",
]
