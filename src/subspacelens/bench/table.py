"""The scores of `bench_audit` as Markdown, and the rows of the fits of `bench_engine`."""

from __future__ import annotations

from functools import partial

from ..core.format import plain, with_interval
from ..core.records import Estimate

FITS_COLUMNS = ("site", "by", "seconds", "÷ ours", "steps", "s a step", "GiB", "FLDD", "run")


def audit_table(result: dict) -> str:
    """Scores of both halves, tests alone, and tier ii over noise and drift."""
    halves = {"held out": result, "calibration": result["calibration"]}
    lines = ["| score | " + " | ".join(halves) + " |", "|---|---|---|"]
    rows = {
        "AUROC, tiers i and iii": lambda half: _estimate(half["auroc"]),
        "AUROC, tier i": lambda half: _estimate(half["auroc_by_tier"]["i"]),
        "AUROC, tier iii": lambda half: _estimate(half["auroc_by_tier"]["iii"]),
        "AUROC, tiers i to iii": lambda half: _estimate(half["all_tiers"]),
        "AUROC, tier ii": lambda half: _estimate(half["auroc_by_tier"]["ii"]),
        "AUROC, tier ii, noise from .3, drift to .1": lambda half: _estimate(
            half["auroc_same_write"]
        ),
        "illusory called faithful": lambda half: _rate(half["miss_rate"]),
        "faithful called illusory": lambda half: _rate(half["false_alarm_rate"]),
        "undetermined": lambda half: _rate(half["undetermined_rate"]),
        "sensors, dormants, random called faithful": lambda half: _rate(
            half["inactive_called_faithful"]
        ),
        "Spearman, mixed cases": lambda half: plain(half["spearman_mixed"]),
        "cases": lambda half: str(half["count"]),
    }
    for name, cell in rows.items():
        lines.append(f"| {name} | " + " | ".join(cell(half) for half in halves.values()) + " |")
    lines += [
        "",
        "| AUROC, one test alone | tiers i and iii | tiers i to iii |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {_estimate(auroc)} | {_estimate(result['by_test_all_tiers'][name])} |"
        for name, auroc in result["by_test"].items()
    ]
    lines += [
        "",
        "| tier ii: noise | drift | AUROC | wrong | undetermined |",
        "|---|---|---|---|---|",
    ]
    for row in result["same_write"]:
        cells = (
            f"{row['noise']:.1f}",
            f"{row['drift']:.2f}",
            plain(row["auroc"]),
            _rate(row["wrong"]),
            _rate(row["undetermined"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
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
        lines += ["", "Left out, because a planted channel does not do what it is meant to:", ""]
        lines += [f"- {text}" for text in result["skipped"]]
    return "\n".join(lines) + "\n"


def _estimate(estimate: dict) -> str:
    return with_interval(Estimate(**estimate), partial(plain, decimals=3))


def _rate(rate: dict) -> str:
    if rate["value"] is None:
        return "-"
    interval = f"[{rate['low']:.0%}, {rate['high']:.0%}]"
    return f"{rate['hits']} of {rate['of']}, {rate['value']:.0%} {interval}"


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
