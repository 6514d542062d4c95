"""The page of audits: records in, one self-contained HTML file out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import plotly.graph_objects as go
from scipy.stats import false_discovery_control

from ..audit.controls.words import in_words
from ..audit.failure import Failure, load_failures
from ..audit.record import AuditRecord, Scatter, Test, load_audit
from ..core.errors import ResultError
from ..core.files import write_atomically
from ..core.format import fixed, number
from . import figures
from .document import Plot, document
from .examples import examples, visible
from .words import AXIS_WORDS, METRIC_WORDS, PATCH_WORDS, TEST_WORDS

_VERDICTS = ("illusory", "mixed", "partial", "faithful", "undetermined")


def render(records: Sequence[AuditRecord], title: str, failures: Sequence[Failure] = ()) -> str:
    """The report of `records`, in their order, as one HTML document that needs no network;
    `failures` are the sites at which there is something to say but no result.

    Raises `ResultError` where there is no record.
    """
    if not records:
        raise ResultError("nothing to report: no audit record was given")
    records = corrected(records)
    return document(
        "report.html.j2",
        _FILTERS,
        title=title,
        lead=summary(records),
        records=records,
        failures=failures,
        plots=[_plots(record) for record in records],
        examples=[examples(record) for record in records],
        axis_words=AXIS_WORDS,
        patch_words=PATCH_WORDS,
        metric_words=METRIC_WORDS,
    )


def corrected(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """The records, in each reading of `chance` also the p-value that is left when all sites of the
    report are looked at together (Benjamini and Hochberg's false discovery rate)."""
    chances = [record.tests.get("chance") for record in records]
    values = [test.value for test in chances if test is not None and test.value is not None]
    if len(values) < 2:
        return list(records)
    adjusted = iter(false_discovery_control(values))
    corrected_records = []
    for record, test in zip(records, chances, strict=True):
        if test is not None and test.value is not None:
            reading = f"{test.reading}; {next(adjusted):.2g} among {len(values)} sites"
            tests = record.tests | {"chance": test.model_copy(update={"reading": reading})}
            record = record.model_copy(update={"tests": tests})
        corrected_records.append(record)
    return corrected_records


def write_report(directory: Path | str) -> Path:
    """Reads every `directory`/*/audit.json and failure.json, in order of their paths, writes
    `directory`/report.html and returns its path.

    Raises `ResultError` where there is none, where one is not a record, or where the page cannot
    be written.

    >>> result.save("runs/mine")
    >>> write_report("runs/mine")
    PosixPath('runs/mine/report.html')
    """
    directory = Path(directory)
    paths = sorted(directory.glob("*/audit.json"))
    if not paths:
        raise ResultError(f"no audit.json in any folder of {directory}: nothing to report")
    records = [load_audit(path) for path in paths]
    failures = load_failures(directory)
    models = _unique(record.model.id for record in records)
    tasks = _unique(record.task.name for record in records)
    title = f"Subspace audit: {', '.join(tasks)} in {', '.join(models)}"
    target = directory / "report.html"
    write_atomically(target, render(records, title, failures).encode())
    return target


def summary(records: Sequence[AuditRecord]) -> str:
    """One sentence: what was audited and how each site came out."""
    models = " and ".join(_unique(record.model.id for record in records))
    tasks = " and ".join(_unique(record.task.name for record in records))
    if len(records) == 1:
        record = records[0]
        return (
            f"One subspace of {models} was patched and audited on {tasks}: its effect at "
            f"{record.site} is {record.verdict.label}."
        )
    outcomes = [
        f"{verdict} at {_listed(sites)}"
        for verdict in _VERDICTS
        if (sites := [record.site for record in records if record.verdict.label == verdict])
    ]
    return (
        f"{len(records)} subspaces of {models} were patched and audited on {tasks}: the effect is "
        f"{_listed(outcomes, ', and ' if len(records) > 2 else ' and ')}."
    )


def spread(scatter: Scatter) -> str:
    """`z = 0: −1.20 ± 0.40; z = 1: 0.90 ± 0.50`: mean and standard deviation of each class."""
    return "; ".join(
        f"z = {i}: {number(_mean(values))} ± {number(_deviation(values))}"
        for i, values in enumerate((scatter.z0, scatter.z1))
        if values
    )


def ordered_tests(record: AuditRecord) -> Iterator[tuple[str, str, str, Test]]:
    """(id, plain question, statistic, test) in the order of the documentation, then any other."""
    known = [name for name in TEST_WORDS if name in record.tests]
    for name in [*known, *(name for name in record.tests if name not in TEST_WORDS)]:
        question, statistic = TEST_WORDS.get(name, (name.replace("_", " "), ""))
        yield name, question, statistic, record.tests[name]


def _plots(record: AuditRecord) -> dict[str, Plot | None]:
    site = record.site
    drawn = figures.scatters(record)

    def values(metric: str) -> str:
        return ", ".join(
            f"{figures.PATCH_NAMES.get(name, name)} "
            f"{fixed(getattr(record.effect(name), metric).value)}"
            for name in figures.patch_order(record)
        )

    curve = record.figures.dose_response
    support = record.figures.support
    words = record.figures.written
    plots: dict[str, tuple[go.Figure | None, str]] = {
        "fldd": (figures.effects(record, "fldd"), f"Bars of FLDD by patch: {values('fldd')}"),
        "iia": (figures.effects(record, "iia"), f"Bars of IIA by patch: {values('iia')}"),
        "dose_response": (
            figures.dose_response(record),
            f"Line of effect in nats against dose, over doses {_range(curve.dose)}: "
            f"effects {_range(curve.effect)}",
        ),
        "written": (
            figures.written(record),
            f"Histograms along the written direction. Natural: {spread(words.natural)}. "
            f"Patched: {spread(words.patched)}",
        ),
        "support": (
            figures.support(record),
            f"Lines against explained variance: on-support FLDD {_range(support.on)}, "
            f"off-support FLDD {_range(support.off)}, share of V on support "
            f"{_range(support.share)}",
        ),
    }
    plots["controls"] = figures.controls(record), _controls_label(record)
    for part, scatter in drawn.items():
        label = f"Histograms of the projection on the {part}: {spread(scatter)}" if scatter else ""
        plots[part] = (figures.projection(record, part), label)
    return {
        name: None if figure is None else Plot.of(figure, f"{site}. {label}")
        for name, (figure, label) in plots.items()
    }


def _controls_label(record: AuditRecord) -> str:
    sentences = in_words(record.controls, record.task.test_pairs) if record.controls else []
    return f"Planted subspaces by FLDD, truth and verdict. {' '.join(sentences)}"


def _unique(values: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _listed(words: Sequence[str], last: str = " and ") -> str:
    return last.join(filter(None, (", ".join(words[:-1]), words[-1])))


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{number(min(known))} to {number(max(known))}" if known else "none"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / max(len(values) - 1, 1))


_FILTERS = {
    "in_words": in_words,
    "spread": spread,
    "ordered_tests": ordered_tests,
    "patch_order": figures.patch_order,
    "visible": visible,
}
