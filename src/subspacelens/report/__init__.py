"""The offline HTML report of one run: pictures, tables and the verdict of every audited site."""

from .page import render, write_report

__all__ = ["render", "write_report"]
