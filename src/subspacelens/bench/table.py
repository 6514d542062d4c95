"""The scores of `bench_audit` as Markdown, and the rows of the fits of `bench_engine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ..core.format import plain, with_interval
from ..core.records import Estimate

FITS_COLUMNS = ("site", "by", "seconds", "÷ ours", "steps", "s a step", "GiB", "FLDD", "run")


def scored(result: dict) -> dict[str, dict]:
    """The scores over all and of those kinds of site that have a case."""
    return {name: each for name, each in result["scores"].items() if each["count"]}


def score_lines(
    title: str, scores: Mapping[str, dict], rows: Mapping[str, Callable[[dict], str]]
) -> list[str]:
    """A table in Markdown: a column for each of the scores, a row for what is read off them."""
    lines = [f"| {title} | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    for name, cell in rows.items():
        lines.append(f"| {name} | " + " | ".join(cell(each) for each in scores.values()) + " |")
    return lines


def audit_table(result: dict) -> str:
    """Scores over all and by kind of site, single tests beside the score, power, and the controls
    on the model as it is."""
    scores = scored(result)
    rows = {
        "AUROC of the score": lambda each: _estimate(each["auroc"]),
        "illusory called faithful": lambda each: _rate(each["miss_rate"]),
        "faithful called illusory": lambda each: _rate(each["false_alarm_rate"]),
        "sensors, dormants called faithful": lambda each: _rate(each["inactive_called_faithful"]),
        "illusory called illusory": lambda each: _rate(each["right_illusory"]),
        "faithful called faithful or partial": lambda each: _rate(each["right_faithful"]),
        "undetermined, of FLDD .3 or more": lambda each: _rate(each["undetermined_rate"]),
        "for these reasons": lambda each: _counted(each["undetermined_for"]),
        "verdicts on mixed cases": lambda each: _counted(each["mixed"]),
        "Spearman, score and share, mixed cases": lambda each: plain(each["spearman_mixed"]),
    }
    lines = score_lines(f"{len(result['cases'])} cases", scores, rows)
    lines += ["", "| AUROC, one test alone | " + " | ".join(scores) + " |"]
    lines.append("|---|" + "---|" * len(scores))
    for name in scores["all"]["by_test"]:
        cells = (each["by_test"].get(name) for each in scores.values())
        lines.append(f"| {name} | " + " | ".join(_estimate(c) if c else "-" for c in cells) + " |")
    lines += [
        "",
        "| judged on | illusory called illusory | faithful called faithful |",
        "|---|---|---|",
    ]
    power = scores["all"]["power"]
    for size in power["illusory"]:
        cells = (_rate(power[kind].get(size, power["illusory"][size])) for kind in power)
        lines.append(f"| {size} pairs | " + " | ".join(cells) + " |")
    if result["trained"]["rates"]:
        lines += [
            "",
            "| trained truth | subspaces | right | wrong | open |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {fit} | {rate['of']} | "
            + " | ".join(f"{rate[name]['value']:.0%}" for name in ("right", "wrong", "open"))
            + " |"
            for fit, rate in result["trained"]["rates"].items()
        ]
    if result["random"]:
        found = [(row["verdict"], row["code"]) for row in result["random"]]
        counted = ", ".join(f"{found.count(v)} {v[0]} ({v[1]})" for v in dict.fromkeys(found))
        lines += ["", f"{len(found)} uniformly random subspaces of models as they are: {counted}."]
    if result["attacks"]:
        lines += ["", "| attack | model | site | FLDD | verdict |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['name']} | {row['model']} | `{row['site']}` | {plain(row['fldd'])} | "
            f"{row['verdict']} ({row['code']}) |"
            for row in result["attacks"]
        ]
    if result["controls"]:
        lines += [
            "",
            "| the model as it is | direction | FLDD | expected | verdict | score |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| `{row['site']}` | {row['kind']} | {plain(row['fldd'])} | {row['expected']} | "
            f"{row['verdict']} | {row['score']:.2f} |"
            for row in result["controls"]
        ]
    if result["skipped"]:
        lines += ["", "Left out:", ""]
        lines += [f"- {text}" for text in result["skipped"]]
    return "\n".join(lines) + "\n"


def _estimate(estimate: dict) -> str:
    return with_interval(Estimate(**estimate), partial(plain, decimals=3))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _rate(rate: dict) -> str:
    if rate["value"] is None:
        return "-"
    interval = f"[{rate['low']:.0%}, {rate['high']:.0%}]"
    return (
        f"{rate['hits']} of {rate['of']}, {rate['value']:.0%} {interval}, {rate['models']} models"
    )


def fits_rows(result: dict) -> list[tuple[str, ...]]:
    """The whole fits of `bench_engine` under `FITS_COLUMNS`, plain hooks first and ours last."""
    rows = []
    for site, found in result["fits"].items():
        fits = found["fits"]
        for name, fit in fits.items():
            if fit["run"] == "not run":
                rows.append((site, name, *("-",) * 6, fit["why"]))
                continue
            own, seconds = fits["subspacelens"]["seconds"], fit["seconds"]
            rows.append(
                (
                    site,
                    name,
                    plain(seconds),
                    "-" if None in (own, seconds) else f"{seconds / own:.1f}",
                    str(fit["steps"] or "-"),
                    plain(fit["step_seconds"]),
                    f"{fit['peak_rss_bytes'] / 2**30:.2f}",
                    plain(fit["best_fldd"], 3),
                    f"{fit['run']}: {fit['why']}" if fit["why"] else fit["run"],
                )
            )
    return rows
