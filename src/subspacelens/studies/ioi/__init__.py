"""The paper's IOI study (arXiv 2311.17030, §3-4 and appendix B), a file a part."""

from .study import Generalisation, IoiRecord, IoiStudy, reproduce_ioi

__all__ = ["Generalisation", "IoiRecord", "IoiStudy", "reproduce_ioi"]
