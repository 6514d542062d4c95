"""The names of `import subspacelens as sl`. This module loads torch; the package alone does not."""

from . import fit
from .audit import Audit, audit
from .audit.record import AuditRecord, load_audit
from .certify import certify
from .core.errors import LensError, ModelError, ResultError, SiteError, SubspaceError, TaskError
from .core.progress import showing_progress
from .core.site import STREAMS, Site
from .engine import patches as patching
from .engine.capture import Capture, capture
from .engine.replay import Replay
from .engine.task_capture import TaskCapture, capture_task
from .fit import FITS, das
from .fit.subspace import Subspace
from .model.lens import LensModel, wrap
from .model.loading import load_model
from .report import write_report
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
