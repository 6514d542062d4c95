"""Writes the studies' blocks in docs/ from docs/records: tables, figures, and the sentences around
them, in which every number is a record's.

python tools/studies_docs.py                      # from the records that are in the repository
python tools/studies_docs.py --from runs/studies  # from what `subspacelens reproduce all` made
python tools/studies_docs.py --check              # write nothing, fail where something would change

A block of a page stands between `<!-- from: ioi -->` and `<!-- end -->`, and its text is that of
tools/studies/ioi.md.j2.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from studies.digests import RECORDS, digest
from studies.draw import FIGURES

from subspacelens.core.format import MINUS, duration
from subspacelens.studies.editing_summary import PAPER_XL as EDITING_XL
from subspacelens.studies.facts_summary import FACTOR, PAPER_LAYERS
from subspacelens.studies.facts_summary import PAPER_XL as FACTS_XL
from subspacelens.studies.facts_summary import listed as layers
from subspacelens.studies.ioi.circuit import NOTABLE
from subspacelens.studies.ioi.claims import HALF, SMALL_IIA
from subspacelens.studies.ioi.table import PAPER
from subspacelens.survey.illusions import WORKS

ROOT = Path(__file__).parents[1]
DOCS, TEMPLATES = ROOT / "docs", Path(__file__).parent / "studies"
BLOCK = re.compile(r"<!-- from: (?P<name>[\w.-]+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
WORDS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
CUTS = {"notable": NOTABLE, "half": HALF, "iia": SMALL_IIA, "factor": FACTOR, "works": WORKS}
MODELS = {"smollm2": "SmolLM2-135M-Instruct"}


def short(value: float | None) -> str:
    """`.21`, `−1.05`, `.00`; `–` where there is no value."""
    if value is None:
        return "–"
    text = f"{value:.2f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return _lean(text)


def exact(value: float | None) -> str:
    """`.875`, `−9.4`: as it was given."""
    return "–" if value is None else _lean(f"{value:g}")


def _lean(text: str) -> str:
    return told(text).replace("-", MINUS)


def told(sentence: str) -> str:
    """A sentence of a command, its numbers as the pages have them: `.42`, not `0.42`."""
    return re.sub(r"(?<![\d.])(-?)0(?=\.\d)", lambda sign: MINUS if sign[1] else "", sentence)


def estimate(values: Sequence[float | None] | None) -> str:
    """`.21 [.20, .22]` of a value and its interval."""
    if not values or values[0] is None:
        return "–"
    value, *ends = values
    return " ".join([short(value), *([f"[{', '.join(map(short, ends))}]"] if ends else [])])


def percent(value: float | None) -> str:
    """`63 %`; `–` where there is no value."""
    return "–" if value is None else f"{100 * value:.0f} %".replace("-", MINUS)


def word(count: int) -> str:
    """`six`, `13`."""
    return WORDS[count] if count < len(WORDS) else str(count)


def listed(items: Iterable[object]) -> str:
    """`a, b and c`."""
    *others, last = map(str, items)
    return f"{', '.join(others)} and {last}" if others else last


def coded(items: Iterable[str]) -> str:
    """The same, each as code."""
    return listed(f"`{item}`" for item in items)


def made(record: Mapping[str, Any], study: str) -> str:
    """Command, commit, date, machine and time of a record, in a sentence."""
    by, seconds = record["made"], record.get("seconds", 0)
    total = sum(seconds.values()) if isinstance(seconds, dict) else seconds
    commit = f"commit `{by['commit'][:10]}`" if by["commit"] else f"version {by['version']}"
    parts = [
        f"`subspacelens reproduce all --study {study}`",
        commit + (" with changes" if by["changed"] else ""),
        by["began"][:10],
        by["machine"],
        f"{by['threads']} thread{'s' if by['threads'] > 1 else ''}",
        *([duration(total)] if total else []),
    ]
    return f"({', '.join(parts)}.)"


def environment() -> Environment:
    """Templates and what they may call; a name that is missing is an error."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    env.filters |= {
        "f": short, "e": estimate, "pct": percent, "word": word, "listed": listed, "code": coded,
        "layers": layers, "exact": exact, "many": "{:,}".format, "duration": duration,
        "median": median, "of": lambda name, held: held[name],
        "model": lambda name: MODELS.get(name, name), "told": told,
    }  # fmt: skip
    env.globals |= {"made": made, "paper": paper(), "cuts": CUTS, "zip": zip}
    return env


def paper() -> dict[str, Any]:
    """The paper's figures, as the package quotes them, and what it does not quote (paper.json)."""
    ioi: dict[str, dict[str, list[float]]] = {}
    for (stream, patch), figures in PAPER.items():
        ioi.setdefault(stream, {})[patch] = list(figures)
    held = json.loads((TEMPLATES / "paper.json").read_text())
    xl = {"layers": PAPER_LAYERS, "facts": FACTS_XL, "editing": EDITING_XL}
    return held | {"ioi": held["ioi"] | ioi, "xl": held["xl"] | xl}


def records(folder: Path = DOCS / "records") -> dict[str, Any]:
    """The digests that are kept, by study."""
    return {
        name: json.loads(path.read_bytes())
        for name in RECORDS
        if (path := folder / f"{name}.json").exists()
    }


def filled(text: str, held: Mapping[str, Any], where: str) -> str:
    """A page with its blocks written from records. Raises `SystemExit` for a block without one."""
    env = environment()

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        study = name.partition(".")[0]
        if study not in held:
            raise SystemExit(f"{where}: block '{name}' has no record docs/records/{study}.json")
        body = env.get_template(f"{name}.md.j2").render(r=held[study], records=held)
        return f"<!-- from: {name} -->\n{flowed(body)}\n<!-- end -->"

    return BLOCK.sub(block, text)


def flowed(text: str) -> str:
    """Markdown with paragraphs and items broken at 100 columns, one empty line between blocks."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip() or (line.startswith(("- ", "#")) and blocks[-1]):
            blocks.append([])
        if line.strip():
            blocks[-1].append(line.strip())
    written = ""
    for block in filter(None, blocks):
        item = block[0].startswith("- ")
        if not block[0].startswith("|"):
            indent = "  " if item else ""
            joined = " ".join(block)
            block = [textwrap.fill(joined, 100, subsequent_indent=indent, **WHOLE_WORDS)]
        close = item and written.rpartition("\n\n")[2].startswith("- ")
        written += ("\n" if close else "\n\n" if written else "") + "\n".join(block)
    return written


WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}


def pages(held: Mapping[str, Any]) -> dict[Path, str]:
    """Every page with blocks, and every figure of a record, as it is to be."""
    texts = {
        path: filled(text, held, str(path.relative_to(ROOT)))
        for path in sorted(DOCS.glob("*.md"))
        if BLOCK.search(text := path.read_text())
    }
    drawn: dict[str, tuple[str, Callable[[Any], str]]] = FIGURES
    return texts | {
        DOCS / name: draw(held[study]) for name, (study, draw) in drawn.items() if study in held
    }


def taken(folder: Path) -> None:
    """Puts the digests of the records in `folder` into docs/records, and the map into docs."""
    for name, (file, _) in RECORDS.items():
        if (folder / name / file).exists():
            (DOCS / "records").mkdir(exist_ok=True)
            (DOCS / f"records/{name}.json").write_bytes(digest(name, folder / name))
    if (folder / "prevalence/illusions.svg").exists():
        shutil.copy(folder / "prevalence/illusions.svg", DOCS / "illusions.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--from", dest="folder", type=Path, help="take the records of this folder")
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args()
    if asked.folder:
        taken(asked.folder)
    for path, text in pages(records()).items():
        if path.exists() and path.read_text() == text:
            continue
        if asked.check:
            raise SystemExit(f"{path.relative_to(ROOT)} is not what the records say")
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
