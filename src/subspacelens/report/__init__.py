"""The offline HTML pages of what was measured: pictures, tables and verdicts, and a start page."""

from .find_page import write_find_page
from .index_page import write_pages
from .page import render, write_report
from .screen_page import write_screen

__all__ = ["render", "write_find_page", "write_pages", "write_report", "write_screen"]
