"""The names of `import subspacelens as sl`. This module loads torch; the package alone does not."""

from . import fit
from .audit import Audit, Screen, audit, screen
from .audit.addition import AdditionAudit, audit_addition, audit_texts
from .audit.addition.record import AdditionRecord, load_addition
from .audit.hub import from_hub, push_to_hub
from .audit.record import AuditRecord, load_audit
from .certify import certify, doctor_rows
from .core.errors import LensError, ModelError, ResultError, SiteError, SubspaceError, TaskError
from .core.progress import showing_progress
from .core.site import STREAMS, Site
from .engine import patches as patching
from .engine.capture import Capture, capture
from .engine.effect import Effect, Example
from .engine.joint import JointEffect
from .engine.likely import Likely
from .engine.metrics import Metric
from .engine.recall import known_facts, only_correct
from .engine.replay import Replay
from .engine.routing import routed
from .engine.several import Effects
from .engine.task_capture import TaskCapture, capture_task
from .find import FindRecord, Found, find, load_find, load_subspace
from .fit import FITS, das
from .fit.foreign import from_foreign
from .fit.operation import own_patch
from .fit.subspace import Subspace
from .interop import Foreign, read_foreign
from .interop.names import site_named, spellings
from .measure.hypotheses import Agreement, agreement
from .measure.maps import InstantMap, PatchingMap, instant_map, patching_map
from .measure.patch import patch
from .measure.swap import Swap, swap
from .model.lens import LensModel, wrap
from .model.loading import load_model
from .report import write_pages, write_report, write_screen
from .survey import IllusionMap, survey
from .sweep import Grid, read_grid, results, sweep
from .tasks import Pair, PairSet, Prompt, Task, contrast, ioi, pairs_task, read_pairs
from .tasks.facts import embedded_facts, read_facts
from .tasks.texts import texts_task

__all__ = [
    "FITS",
    "STREAMS",
    "AdditionAudit",
    "AdditionRecord",
    "Agreement",
    "Audit",
    "AuditRecord",
    "Capture",
    "Effect",
    "Effects",
    "Example",
    "FindRecord",
    "Foreign",
    "Found",
    "Grid",
    "IllusionMap",
    "InstantMap",
    "JointEffect",
    "LensError",
    "LensModel",
    "Likely",
    "Metric",
    "ModelError",
    "Pair",
    "PairSet",
    "PatchingMap",
    "Prompt",
    "Replay",
    "ResultError",
    "Screen",
    "Site",
    "SiteError",
    "Subspace",
    "SubspaceError",
    "Swap",
    "Task",
    "TaskCapture",
    "TaskError",
    "agreement",
    "audit",
    "audit_addition",
    "audit_texts",
    "capture",
    "capture_task",
    "certify",
    "contrast",
    "das",
    "doctor_rows",
    "embedded_facts",
    "find",
    "fit",
    "from_foreign",
    "from_hub",
    "instant_map",
    "ioi",
    "known_facts",
    "load_addition",
    "load_audit",
    "load_find",
    "load_model",
    "load_subspace",
    "only_correct",
    "own_patch",
    "pairs_task",
    "patch",
    "patching",
    "patching_map",
    "push_to_hub",
    "read_facts",
    "read_foreign",
    "read_grid",
    "read_pairs",
    "results",
    "routed",
    "screen",
    "showing_progress",
    "site_named",
    "spellings",
    "survey",
    "swap",
    "sweep",
    "texts_task",
    "wrap",
    "write_pages",
    "write_report",
    "write_screen",
]
