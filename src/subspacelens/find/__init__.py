"""From pairs to a subspace that one can rely on, or to why there is none."""

from ..core.modules import callable_package
from .ready import ReadySubspace, load_subspace
from .record import FindRecord, load_find
from .run import Found, find

__all__ = ["FindRecord", "Found", "ReadySubspace", "find", "load_find", "load_subspace"]

callable_package(__name__, find)
