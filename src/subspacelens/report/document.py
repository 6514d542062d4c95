"""What every page has in common: it is one HTML file that needs no network.

Everything is inline (plotly.js once, packed, styles, script, figure data), and the page's own
content security policy forbids any request and any script but the two whose hashes it names: the
page's own, which unpacks plotly.js and large figures, and plotly.js.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..core import format
from ..core.errors import ResultError

_FORMS = {
    form.__name__: form
    for form in (
        format.fixed, format.number, format.percent, format.interval, format.with_interval,
        format.duration, format.memory,
    )
}  # fmt: skip


PACKED_FROM = 20_000
"""Characters of figure JSON from which it stands in the page packed, as plotly.js does."""


@dataclass(frozen=True)
class Plot:
    """A figure ready for the page: its JSON, its name for a screen reader, its height in px."""

    json: Markup
    label: str
    height: int

    @property
    def packed(self) -> Markup | None:
        """The JSON of a large figure, gzip in base64; None where it is small."""
        return _packed(self.json) if len(self.json) > PACKED_FROM else None

    @classmethod
    def of(cls, figure: go.Figure, label: str) -> Plot:
        return cls(_json(figure), label, figure.to_dict()["layout"]["height"])


def document(
    template: str,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    *,
    drawn: bool = True,
    **values: Any,
) -> str:
    """The HTML of a template that extends `_page.html.j2`; `values` include the `title` and, where
    the template has none of its own, the `lead`. Every template has the forms of `core.format` as
    filters, and `filters` of its own. A page without figures is not `drawn`, and has no plotly.js.
    """
    environment = Environment(
        loader=PackageLoader("subspacelens.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FORMS | {"told": told} | dict(filters or {})
    environment.globals |= _FORMS
    plotly, plotly_hash = _plotly() if drawn else (None, None)
    script = _inline_script(_source("report.js"))
    return environment.get_template(template).render(
        styles=Markup(_source("report.css")),
        plotly=plotly,
        script=script,
        script_hashes=list(filter(None, [_hash(script), plotly_hash])),
        **values,
    )


def told(settings: Mapping[str, object]) -> str:
    """`method das, seed 0`: settings or versions in one line; those of a setting in brackets."""

    def shown(value: object) -> object:
        return f"({told(value)})" if isinstance(value, Mapping) else value

    return ", ".join(f"{name} {shown(value)}" for name, value in settings.items())


def _json(figure: go.Figure) -> Markup:
    """Figure JSON that no HTML parser can leave: `<`, `>` and `&` only as JSON escapes."""
    text = figure.to_json() or "{}"
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _plotly() -> tuple[Markup, str]:
    """plotly.js, gzip in base64, and the hash of what the page unpacks and runs."""
    source = get_plotlyjs()
    return _packed(source), _hash(source)


def _packed(text: str) -> Markup:
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())


def _inline_script(text: str) -> Markup:
    """A script of ours as it will stand in the page. The HTML parser reads CRLF as LF, so the hash
    must be taken of LF."""
    if "</script" in text.lower():
        raise ResultError("the page's script contains a closing script tag")
    return Markup(text.replace("\r\n", "\n").replace("\r", "\n"))


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _source(name: str) -> str:
    return files("subspacelens.report").joinpath("templates", name).read_text(encoding="utf-8")
