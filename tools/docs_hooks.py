"""What mkdocs is told beyond mkdocs.yml: pages that are made when the site is built.

- `index.md` from README.md, `changes.md` and `contributing.md` from the files beside it;
- a page a tutorial, from docs/tutorials/NAME.py and, where `tools/notebooks.py` ran it, with what
  it printed, the pages that it wrote, and the notebook to take away;
- for `<!-- made: WHAT -->` in a page, what a function of `MADE` gives: the help of every command,
  the schema of every record, the gallery, the figures of the distilled example.
"""

from __future__ import annotations

import html
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from plotly.offline import get_plotlyjs
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parent))
from notebooks import BASH, BUILD, NOTEBOOK, ROOT, Cell, cells_of, gallery, tutorials

TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
Schema = Mapping[str, Any]
NOT_RUN = "This notebook was not run for this copy of the site; `make docs` runs it."
BOXES = "│┆"
"""Of tables, whose lines must stay whole."""


def on_config(config: MkDocsConfig) -> None:
    """Every tutorial has its place under the entry `Tutorials` of the navigation."""
    for entry in config.nav or []:
        if "Tutorials" in entry:
            entry["Tutorials"] = [
                {heading(path): f"tutorials/{name}.md"} for name, path in tutorials().items()
            ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, path in TOP.items():
        files.append(File.generated(config, path, content=from_top((ROOT / name).read_text())))
    taken = {"CITATION.cff": ROOT / "CITATION.cff"}
    for name, path in tutorials().items():
        content, notebook = tutorial(name, path)
        files.append(File.generated(config, f"tutorials/{name}.md", content=content))
        if notebook is not None:
            taken[f"tutorials/{name}.ipynb"] = notebook
    taken |= {page.relative_to(BUILD).as_posix(): page for page in written_pages()}
    for where, path in taken.items():
        files.append(File.generated(config, where, abs_src_path=str(path)))
    for schema, record in records().items():
        text = json.dumps(record.model_json_schema(), indent=1)
        files.append(File.generated(config, f"schemas/{schema}.json", content=text))
    files.append(File.generated(config, "assets/plotly.min.js", content=get_plotlyjs()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    markdown = re.sub(r"(\]\([\w./]*tutorials/\w+|\]\(\d_\w+)\.py\b", r"\1.md", markdown)
    return re.sub(r"<!-- made: (\w+) -->", lambda found: MADE[found[1]](), markdown)


# Pages from the files of the repository's root


def from_top(text: str) -> str:
    """A file of the root as a page of docs/: its links lead to where things are there."""
    for name, path in TOP.items():
        text = text.replace(f"]({name}", f"]({path}")
    return text.replace("](docs/", "](")


# Tutorials


def heading(tutorial: Path) -> str:
    """The first line of a tutorial, its heading."""
    return cells_of(tutorial.read_text())[0].text.partition("\n")[0].removeprefix("# ")


def written_pages(notebook: Path | None = None) -> list[Path]:
    """The pages that tutorials and commands of the gallery wrote, or one notebook."""
    folders = [BUILD / "tutorials", BUILD / "gallery"] if notebook is None else [notebook.parent]
    return sorted(page for folder in folders for page in folder.rglob("*.html"))


def tutorial(name: str, path: Path) -> tuple[str, Path | None]:
    """The page of a tutorial, and its notebook if what was run is what is written."""
    cells, outputs, note = cells_of(path.read_text()), iter(()), NOT_RUN
    notebook = BUILD / "tutorials" / name / NOTEBOOK
    ran = json.loads(notebook.read_text()) if notebook.is_file() else {"cells": ()}
    code = [each for each in ran["cells"] if each["cell_type"] == "code"]
    fits = bool(code) and [e["source"] for e in code] == [c.text for c in cells if c.kind == "code"]
    if fits:
        how = ran["metadata"]["subspacelens"]
        seconds = f"{how['seconds']} seconds of one core"
        note = f"Run on {how['date']} at commit `{how['commit']}`, {seconds}. [The notebook]"
        note += f"({name}.ipynb)"
        outputs = iter([each["outputs"] for each in code])
    shown = [cell_markdown(c, next(outputs, ()) if c.kind == "code" else ()) for c in cells]
    shown.insert(1, f"*{note}*")
    pages = [page.relative_to(notebook.parent).as_posix() for page in written_pages(notebook)]
    if fits and pages:
        shown += ["## Pages that it wrote", "\n".join(f"- [{p}]({name}/{p})" for p in pages)]
    return "\n\n".join(shown) + "\n", notebook if fits else None


def cell_markdown(cell: Cell, outputs: Iterable[Mapping[str, Any]]) -> str:
    if cell.kind == "markdown":
        return cell.text
    language = "bash" if cell.text.startswith(BASH) else "python"
    shown = f"```{language}\n{cell.text.removeprefix(BASH)}\n```"
    printed = "".join(each["text"] for each in outputs)
    if printed:
        kind = "printed" if any(sign in printed for sign in BOXES) else "printed sentences"
        shown += f'\n\n<pre class="{kind}" tabindex="0">{html.escape(printed.rstrip())}</pre>'
    return shown


# The command line


def commands() -> str:
    """Every command with its usage, its text, its options and its example, as its help has them."""
    from subspacelens.cli.app import app

    def walk(command: Any, name: str) -> Iterator[str]:
        context = click.Context(command, info_name=name)
        nested = getattr(command, "commands", None)
        if nested is None:
            yield "\n\n".join(told(command, context, name))
        elif command.help and name != "subspacelens":
            yield f"## {name.removeprefix('subspacelens ')}\n\n{escaped(command.help)}"
        for word, each in (nested or {}).items():
            yield from walk(each, f"{name} {word}")

    def told(command: Any, context: Any, name: str) -> Iterator[str]:
        short = name.removeprefix("subspacelens ")
        yield f"{'###' if ' ' in short else '##'} {short}"
        yield escaped(command.help or "")
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"```\n{name} {usage}\n```"
        if command.epilog:
            example = command.epilog.partition("\b")[2].strip("\n")
            yield f"```\n{inspect.cleandoc(example)}\n```"
        records = [each.get_help_record(context) for each in command.params]
        rows = [[f"`{each[0]}`", escaped(each[1])] for each in records if each]
        if rows:
            yield table(["option", "meaning"], rows)

    return "\n\n".join(walk(typer.main.get_command(app), "subspacelens"))


def escaped(text: str) -> str:
    """Plain text as Markdown: angle brackets are no tags, but for those in code."""
    pieces = inspect.cleandoc(text).split("`")
    pieces[::2] = [html.escape(each, quote=False) for each in pieces[::2]]
    return "`".join(pieces)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table whose cells are Markdown of one line each."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([" ".join(each.split()).replace("|", "\\|") for each in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# Schemas


@cache
def records() -> Mapping[str, Any]:
    """Every record with a schema, by its name without `subspacelens.` and number."""
    for room in ("audit", "measure", "sweep", "survey", "studies"):
        package = importlib.import_module(f"subspacelens.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def below(kind: type) -> Iterator[type]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    found = {}
    for record in set(below(BaseModel)):
        of_record = record.model_fields.get("schema_")
        if of_record and record.__module__.startswith("subspacelens."):
            (version,) = get_args(of_record.annotation)
            found[version.removeprefix("subspacelens.").partition("/")[0]] = record
    return dict(sorted(found.items()))


def schemas() -> str:
    return "\n\n".join(part for name, record in records().items() for part in schema(name, record))


def schema(name: str, record: Any) -> Iterator[str]:
    """The fields of a record, and of what it is made of."""
    whole = record.model_json_schema()
    parts = whole.get("$defs", {})
    yield f"## {whole['properties']['schema']['const']}"
    yield described(whole)
    yield f"[JSON schema](schemas/{name}.json)"
    yield fields(whole, name, parts)
    for part, definition in sorted(parts.items()):
        if "properties" in definition:
            yield f"### {part} {{: #{anchor(name, part)} }}"
            yield described(definition)
            yield fields(definition, name, parts)


def anchor(name: str, part: str) -> str:
    return f"{name}-{part}".lower()


def described(definition: Schema) -> str:
    """A docstring without its examples."""
    return definition.get("description", "").partition(">>>")[0].strip()


def fields(definition: Schema, name: str, parts: Schema) -> str:
    needed = definition.get("required", ())
    rows = (
        [f"`{key}`", kind(value, name, parts), "yes" if key in needed else "no"]
        for key, value in definition["properties"].items()
    )
    return table(["field", "type", "needed"], rows)


def kind(value: Schema, name: str, parts: Schema) -> str:
    """A JSON schema's type in words."""

    def inner(each: Schema) -> str:
        return kind(each, name, parts)

    match value:
        case {"$ref": str(there)}:
            part = there.rpartition("/")[2]
            known = "properties" in parts[part]
            return f"[{part}](#{anchor(name, part)})" if known else inner(parts[part])
        case {"anyOf": list(each)}:
            return " or ".join(map(inner, each))
        case {"const": const}:
            return f"`{const}`"
        case {"enum": list(values)}:
            return ", ".join(f"`{each}`" for each in values)
        case {"type": "array", "prefixItems": list(items)}:
            return f"({', '.join(map(inner, items))})"
        case {"type": "array", "items": items}:
            return f"list of {inner(items)}"
        case {"type": "object", "additionalProperties": dict(items)}:
            return f"{inner(items)} by name"
    return str(value.get("type", "anything"))


# The gallery


def pages() -> str:
    return "\n\n".join(part for each in gallery().values() for part in shown(**each))


def shown(title: str, shows: str, page: str, command: str = "") -> Iterator[str]:
    yield f"## {title}"
    yield shows
    if command:
        yield f"```bash\n{command.strip()}\n```"
    else:
        name = page.split("/")[1]
        yield f"Written by the tutorial [{heading(tutorials()[name])}](tutorials/{name}.md)."
    if not (BUILD / page).is_file():
        yield "*Not made for this copy of the site; `make docs` makes it.*"
        return
    yield f"[Open the page]({page}){{: .md-button }}"


# The distilled example


@cache
def toy() -> Any:
    from subspacelens.studies.toy import run_toy

    return run_toy()


def drawn(figure: Any, label: str) -> str:
    figure.update_layout(template="none", font_color=None, margin={"l": 45, "r": 10})
    lines = {"gridcolor": "rgba(128, 128, 128, .25)", "zerolinecolor": "gray"}
    figure.update_xaxes(tickangle=0, tickfont_size=11, title_font_size=11, **lines)
    figure.update_yaxes(title_font_size=11, **lines)
    config = {"displayModeBar": False, "responsive": True}
    inner = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return f'<div class="figure" role="img" aria-label="{label}">{inner}</div>'


def turn() -> str:
    from subspacelens.report.toy_page import turn_figure

    drawing = drawn(turn_figure(), "Three hidden units before and after the patch, by angle")
    return f'<script src="assets/plotly.min.js"></script>\n{drawing}'


def angle() -> str:
    from subspacelens.report.toy_page import sweep_figure

    return drawn(sweep_figure(toy()), "Effect of the patch against the angle of its direction")


def toy_tables() -> str:
    from subspacelens.report.toy_page import markdown

    return markdown(toy())


MADE: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "schemas": schemas,
    "gallery": pages,
    "turn": turn,
    "angle": angle,
    "toy": toy_tables,
}
