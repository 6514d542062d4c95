"""The benchmark of additions plants what it says, counts as it should, and goes on where it was."""

from __future__ import annotations

import pytest

from helpers_knowing import knowing_lens, knowing_task
from subspacelens.bench import additions_table, bench_additions
from subspacelens.bench.additions import _scores
from subspacelens.bench.audit import Result

KINDS = {"faithful", "illusory", "mixed", "sensor", "dose"}


def test_it_chooses_its_places_and_goes_on_where_it_was(tmp_path):
    lens, task = knowing_lens(), knowing_task()
    result = bench_additions(lens, {"random": task}, tmp_path, count=1, models=2, blind=2)
    assert {case["kind"] for case in result["cases"]} == KINDS
    assert {case["where"] for case in result["cases"]} == {"MLP", "head", "residual"}
    scores = result["scores"]["all"]
    assert scores["miss_rate"]["hits"] == scores["false_alarm_rate"]["hits"] == 0
    assert scores["dose"]["hits"] == 0 < scores["dose"]["of"]
    assert scores["right_faithful"]["hits"] > 0
    kinds = [row["kind"] for row in result["as_it_is"]]
    assert kinds == ["class difference", "random", "random"] * 3
    at_stream = [row for row in result["as_it_is"] if "resid_post" in row["site"]]
    assert at_stream[0]["verdict"] == "faithful" and at_stream[1]["verdict"] == "undetermined"
    files = sorted(tmp_path.rglob("*.json"))
    files[0].unlink()
    stamps = [path.stat().st_mtime_ns for path in files[1:]]
    again = bench_additions(lens, {"random": task}, tmp_path, count=1, models=2, blind=2)
    assert again["cases"] == result["cases"]
    assert stamps == [path.stat().st_mtime_ns for path in files[1:]]
    text = additions_table(result)
    assert "| illusory called faithful | 0 of " in text
    assert "| class difference, in the model as it is |" in text


def made(kind: str, verdict: str, place: int, **changes) -> Result:
    values = dict(
        model="m", task="t", site=f"s{place}", where="MLP", planted=0, plan={}, kind=kind,
        share=None, fldd=0.5, score=0.5, verdict=verdict, code="fails", tests={}, ends={}, few={},
        degenerate=False,
    )  # fmt: skip
    return Result(**(values | changes))


def test_what_is_counted():
    results = [
        made("mixed", "faithful", 0, share=0.25),
        made("mixed", "mixed", 1, share=0.25),
        made("mixed", "faithful", 1, share=0.75, degenerate=True),
        made("dose", "partial", 0),
        made("dose", "undetermined", 1, code="dose"),
        made("illusory", "undetermined", 1, code="chance"),
        made("illusory", "faithful", 0),
        made("faithful", "faithful", 0),
    ]
    scores = _scores(results)
    assert (scores["passed"]["0.25"]["hits"], scores["passed"]["0.25"]["of"]) == (1, 2)
    assert "0.75" not in scores["passed"]  # It does too little to be judged.
    assert scores["dose"]["value"] == scores["miss_rate"]["value"] == pytest.approx(0.5)
    assert scores["codes"]["dose"] == {"partial": 1, "undetermined (dose)": 1}
    assert scores["codes"]["illusory"] == {"undetermined (chance)": 1, "faithful": 1}
    low, high = (scores["miss_rate"]["places"][end] for end in ("low", "high"))
    assert low < 0.1 and high > 0.9
    table = additions_table(
        {"cases": results, "scores": {"all": scores}, "as_it_is": [], "skipped": ["t, s9: none"]}
    )
    assert "| 25% illusory, called faithful | 1 of 2 [" in table and "- t, s9: none" in table
