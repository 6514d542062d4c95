"""The offline HTML report of one run: pictures, tables and the verdict of every audited site."""

from .page import render, write_report
from .screen_page import write_screen

__all__ = ["render", "write_report", "write_screen"]
