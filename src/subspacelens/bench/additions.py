"""`bench_additions`: the error rate of the audit of an addition, on planted truth, at places that
nobody chose by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from ..audit.addition.case import Addition
from ..audit.addition.controls import plannable, planted
from ..audit.addition.judging import judge_blind
from ..audit.controls.run import smaller
from ..audit.controls.spikes import Plan
from ..audit.controls.words import USED
from ..audit.evidence import Setting
from ..audit.record import Verdict
from ..audit.verdict import SMALLEST_FLDD
from ..core.errors import SiteError, TaskError
from ..core.format import plain, with_interval
from ..core.geometry import haar
from ..core.progress import track
from ..core.records import Estimate
from ..fit.closed_form import between_means, by_class
from ..model.lens import LensModel
from ..tasks import Task
from .audit import EFFECTS, WITHIN, Result, by_kind, rows_of
from .kept import source_sha256
from .places import KINDS
from .scores import rate, summary
from .table import score_lines, scored

SCHEMA = "subspacelens.bench.additions/1"
TOO_MUCH = 5.0
"""So many times what a channel writes between the classes is beyond nature."""


def bench_additions(
    lens: LensModel,
    tasks: Mapping[str, Task],
    folder: Path,
    *,
    count: int = 3,
    models: int = 4,
    blind: int = 0,
    seed: int = 0,
) -> dict:
    """Plants `models` models at each of `count` places a task and kind of site, and audits in each
    vectors of known truth as the audit's own controls do, and the faithful one `TOO_MUCH` times as
    long, *dose*. In the model as it is, the difference of the class means and `blind` random
    vectors that write as much are audited too. The result is made of JSON types; `scores` are those
    of `summary`, over all and by kind of site. What was found at a site is written to `folder` when
    it is there, and not done again by the same code.

    Raises `TaskError` where nothing moves the answer, and what `capture_task` does.
    """
    asked = {"models": models, "blind": blind, "seed": seed, "code": source_sha256()}
    rows = rows_of(lens, tasks, folder, count, asked, _found)
    return {
        "schema": SCHEMA,
        "model": lens.id,
        "weights_sha256": lens.weights_sha256,
        "scores": by_kind([Result(**row) for row in rows["cases"]], _scores),
        **{name: rows[name] for name in ("as_it_is", "skipped", "cases")},
    }


def _found(lens: LensModel, name: str, setting: Setting, number: int, asked: dict) -> dict:
    """All rows of one site of a task."""
    seed, setting = 1000 * asked["seed"] + number, smaller(setting)
    generator = torch.Generator().manual_seed(seed)
    beside = setting.replay.writer is not None
    plans = [
        plannable(Plan.drawn(generator, k=1, fldd=EFFECTS, within=WITHIN, beside=beside))
        for _ in range(asked["models"])
    ]
    site, rows = setting.replay.site, {"cases": [], "as_it_is": [], "skipped": []}
    try:
        models = track(planted(setting, plans, seed), f"planted at {site}", total=len(plans))
        for which, (own, spikes) in enumerate(models):
            vectors = [(spike.kind, spike.share, spike.vector) for spike in spikes]
            vectors += [
                ("dose", None, TOO_MUCH * vector)
                for kind, _, vector in vectors
                if kind == "faithful"
            ]
            for kind, share, vector in vectors:
                verdict, case = judge_blind(own, vector)
                result = _result(name, which, kind, share, verdict, case)
                rows["cases"].append(asdict(result))
    except (SiteError, TaskError) as error:
        return rows | {"skipped": [f"{name}, {site}: {error}"]}
    return rows | {"as_it_is": list(_as_it_is(name, setting, asked["blind"], seed))}


def _result(
    name: str, which: int, kind: str, share: float | None, verdict: Verdict, case: Addition
) -> Result:
    effect = case.effects["add"]
    fldd, low = effect.fldd.value, effect.nats.low
    return Result(
        model=case.lens.id,
        task=name,
        site=str(case.site),
        where=KINDS[case.site.stream],
        planted=which,
        plan={},
        kind=kind,
        share=share,
        fldd=fldd,
        score=verdict.score,
        verdict=verdict.label,
        code=verdict.code,
        tests={},
        ends={},
        few={},
        degenerate=fldd is None or fldd < SMALLEST_FLDD or low is None or low <= 0,
    )


def _as_it_is(name: str, setting: Setting, count: int, seed: int) -> Iterator[dict]:
    """The difference of the class means of the model as it is, and random vectors that write as
    much."""
    x, z = by_class(setting.fitted)
    difference = between_means(x.cpu().double(), z)
    case = Addition(setting=setting, vector=difference)
    generator = torch.Generator().manual_seed(seed)
    random = case.matched(haar(len(difference), 1, count, generator)[..., 0])
    for kind, vector in [("class difference", difference), *(("random", v) for v in random)]:
        verdict, judged = judge_blind(setting, vector)
        yield {
            "task": name,
            "site": str(judged.site),
            "kind": kind,
            "fldd": judged.effects["add"].fldd.value,
            "verdict": verdict.label,
            "code": verdict.code,
        }


def _scores(results: list[Result]) -> dict:
    """Those of `summary`, with the doses beyond nature and the mixtures that are called faithful,
    these by their share, and the codes of each kind."""
    judged = [r for r in results if not r.degenerate]
    mixed = [r for r in judged if r.kind == "mixed"]
    return summary(results) | {
        "dose": rate([r for r in judged if r.kind == "dose"], lambda r: r.verdict in USED),
        "passed": {
            f"{share:g}": rate([r for r in mixed if r.share == share], lambda r: r.verdict in USED)
            for share in sorted({r.share for r in mixed if r.share is not None})
        },
        "codes": {
            kind: dict(Counter(_said(r.verdict, r.code) for r in results if r.kind == kind))
            for kind in dict.fromkeys(r.kind for r in results)
        },
    }


def _said(verdict: str, code: str) -> str:
    return f"{verdict} ({code})" if verdict == "undetermined" else verdict


def additions_table(result: dict) -> str:
    """The scores of `bench_additions` as Markdown: rates with intervals over sites, what was said
    of each kind, and of vectors in the model as it is."""
    rows = {
        "illusory called faithful": lambda each: _rate(each["miss_rate"]),
        "faithful called illusory": lambda each: _rate(each["false_alarm_rate"]),
        "sensors called faithful": lambda each: _rate(each["inactive_called_faithful"]),
        f"faithful, {TOO_MUCH:g} times the dose, called faithful": lambda each: _rate(each["dose"]),
        **{
            f"{float(share):.0%} illusory, called faithful": (
                lambda each, share=share: _rate(each["passed"].get(share))
            )
            for share in result["scores"]["all"]["passed"]
        },
        "illusory called illusory": lambda each: _rate(each["right_illusory"]),
        "faithful called faithful or partial": lambda each: _rate(each["right_faithful"]),
        "undetermined, of FLDD .3 or more": lambda each: _rate(each["undetermined_rate"]),
        "AUROC of the score": lambda each: with_interval(
            Estimate(**each["auroc"]), partial(plain, decimals=3)
        ),
    }
    lines = score_lines(f"{len(result['cases'])} vectors", scored(result), rows)
    lines += ["", "| vector | verdicts |", "|---|---|"]
    said = dict(result["scores"]["all"]["codes"])
    for row in result["as_it_is"]:
        counted = said.setdefault(f"{row['kind']}, in the model as it is", Counter())
        counted[_said(row["verdict"], row["code"])] += 1
    lines += [
        f"| {kind} | {', '.join(f'{n} {what}' for what, n in codes.items())} |"
        for kind, codes in said.items()
    ]
    if result["skipped"]:
        lines += ["", "Left out:", "", *(f"- {text}" for text in result["skipped"])]
    return "\n".join(lines) + "\n"


def _rate(found: dict | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    low, high = found["places"]["low"], found["places"]["high"]
    return f"{found['hits']} of {found['of']} [{low:.0%}, {high:.0%}]"
