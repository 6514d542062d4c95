"""The paper's IOI study (arXiv 2311.17030, §3-4 and appendix B), a file a part."""

from .record import Generalisation, IoiRecord
from .study import IoiStudy, reproduce_ioi

__all__ = ["Generalisation", "IoiRecord", "IoiStudy", "reproduce_ioi"]
