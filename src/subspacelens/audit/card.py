"""The card of a subspace or of an audit on the hub: what the record says, and a picture of it."""

from __future__ import annotations

import json
from html import escape

from ..core.format import plain, with_interval
from ..core.records import EffectRecord
from ..fit.subspace import Subspace
from .record import AuditRecord

PICTURE = "effects.svg"
_WIDTH, _ROW, _LEFT = 640, 26, 110


def subspace_card(subspace: Subspace, repository: str) -> str:
    """Markdown with the front matter that the hub reads: what it is and where it comes from."""
    return "\n".join(
        (
            *_front(subspace.model_id),
            f"# {repository.rpartition('/')[2]}",
            "",
            *_provenance(subspace),
            "",
            "It was not audited: nothing is said here of whether its effect is real.",
            "",
            *_use(repository, subspace),
        )
    )


def audit_card(subspace: Subspace, record: AuditRecord, repository: str) -> str:
    """The same with verdict, reasons, effects and tests of the record."""
    verdict = record.verdict
    metrics = tuple(EffectRecord.model_fields)
    return "\n".join(
        (
            *_front(subspace.model_id, verdict.label),
            f"# {repository.rpartition('/')[2]}: {verdict.label}",
            "",
            *(f"- {_text(reason)}" for reason in verdict.reasons),
            "",
            f"Strongest objection: {_text(verdict.objection)}",
            "",
            f"![FLDD of each patch, with its 95 % interval]({PICTURE})",
            "",
            f"| patch | {' | '.join(metrics)} |",
            f"|---|{'---|' * len(metrics)}",
            *(
                f"| {name} | {' | '.join(with_interval(x, plain) for _, x in effect)} |"
                for name, effect in record.effects.items()
            ),
            "",
            "| test | value | what it says |",
            "|---|---|---|",
            *(
                f"| {name} | {with_interval(test, plain)} | {_text(test.reading)} |"
                for name, test in record.tests.items()
            ),
            "",
            f"Task {_text(record.task.name)}: {record.task.train_pairs} pairs to fit, "
            f"{record.task.test_pairs} to judge.",
            *(["", "Assumed: " + "; ".join(map(_text, verdict.assumptions))] * bool(
                verdict.assumptions
            )),
            *(f"\nNote: {_text(note)}" for note in record.notes),
            "",
            *_provenance(subspace),
            f"- command: `{_code(record.command) or 'none'}`",
            f"- versions: {', '.join(f'{k} {v}' for k, v in record.versions.items())}",
            "",
            *_use(repository, subspace),
        )
    )  # fmt: skip


def picture(record: AuditRecord) -> str:
    """FLDD of each patch with its interval, as an SVG image."""
    rows = [(name, effect.fldd) for name, effect in record.effects.items()]
    known = [end for _, x in rows for end in (x.low, x.value, x.high) if end is not None]
    low, high = min(0.0, *known, 0.0), max(1.0, *known, 1.0)
    scale = (_WIDTH - _LEFT - 60) / (high - low)

    def at(value: float) -> float:
        return _LEFT + (value - low) * scale

    height = _ROW * len(rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for number, (name, x) in enumerate(rows):
        middle = _ROW * number + 20
        parts.append(
            f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
        )
        if x.value is None:
            continue
        begin, width = min(at(0), at(x.value)), abs(at(x.value) - at(0))
        parts.append(
            f'<rect x="{begin:.1f}" y="{middle - 8}" width="{width:.1f}" height="16" '
            'fill="#4c78a8"/>'
        )
        if x.low is not None and x.high is not None:
            parts.append(
                f'<path d="M{at(x.low):.1f} {middle}H{at(x.high):.1f}" stroke="#111" '
                'stroke-width="1.5"/>'
            )
        parts.append(f'<text x="{_WIDTH - 50}" y="{middle + 4}">{plain(x.value)}</text>')
    parts.append(
        f'<path d="M{at(0):.1f} 6V{height - 20}" stroke="#888"/>'
        f'<text x="{at(0):.1f}" y="{height - 6}" text-anchor="middle">0</text>'
        f'<text x="{at(1):.1f}" y="{height - 6}" text-anchor="middle">1: the difference is gone'
        "</text></svg>"
    )
    return "".join(parts)


def _front(model: str, verdict: str | None = None) -> list[str]:
    tags = ["activation-patching", "interpretability", *([verdict] if verdict else ())]
    base = [f"base_model: {json.dumps(model)}"] if _hub_id(model) else []
    return ["---", "library_name: subspacelens", *base, f"tags: {json.dumps(tags)}", "---", ""]


def _hub_id(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith((".", "/"))


def _provenance(subspace: Subspace) -> list[str]:
    settings = ", ".join(f"{k} {v}" for k, v in subspace.fit.items() if v is not None)
    return [
        f"- {subspace.dim} of {subspace.basis.shape[0]} dimensions at `{subspace.site}`",
        f"- of the model {_text(subspace.model_id)}, weights `{subspace.weights_sha256[:16]}`",
        f"- found by {_text(settings)}",
        f"- on pairs `{subspace.data_sha256[:16] or 'not known'}`",
    ]


def _use(repository: str, subspace: Subspace) -> list[str]:
    return [
        "```python",
        "import subspacelens as sl",
        "",
        f"lens = sl.load_model({subspace.model_id!r})",
        f'found = sl.from_hub("{repository}")',
        "```",
        "",
    ]


def _text(text: str) -> str:
    """Words of a record as one line of Markdown that is only text."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
