"""The facts and editing studies, whole, on a tiny model; their summaries on made-up records."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers_facts import known_to
from helpers_studies import block_of
from subspacelens import LensError, ResultError, TaskError
from subspacelens.bench import bench_facts
from subspacelens.cli.app import app
from subspacelens.core.statistics import Units
from subspacelens.edit import RomeRecipe
from subspacelens.edit.tracing import TraceRecipe
from subspacelens.engine.text import Corpus
from subspacelens.fit.per_pair import Recipe
from subspacelens.model.loading import load_model
from subspacelens.report.editing_page import write_editing
from subspacelens.report.facts_page import write_facts
from subspacelens.studies.editing import EditingPlan, editing_plan, run_editing
from subspacelens.studies.editing_record import load_editing_record
from subspacelens.studies.editing_summary import (
    correlation,
    edit_findings,
    edit_summary,
    unedited,
)
from subspacelens.studies.facts import FactsPlan, facts_plan, run_facts
from subspacelens.studies.facts_record import Tried, load_facts_record
from subspacelens.studies.facts_summary import findings, summary
from subspacelens.studies.made import Made
from subspacelens.tasks.facts import as_counterfact

SHORT = Recipe(steps=3, trial=1, rates=(0.3,), starts=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBSPACELENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def lens(tiny_folder, cache):
    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def facts(lens):
    """One subject carries markup: whatever comes from data must be escaped in the page."""
    return tuple(
        replace(fact, relation=f"<b>{fact.relation}</b>") for fact in known_to(lens, each=14)
    )


@pytest.fixture(scope="module")
def corpus(lens):
    ids = lens.tokenizer("Then, Mary and John met at the park. " * 40)["input_ids"]
    return Corpus("text", tuple(tuple(ids[i : i + 16]) for i in range(0, len(ids) - 16, 16)))


@pytest.fixture(scope="module")
def record(lens, facts, corpus):
    plan = FactsPlan(
        layers=(0, 2), resid_layers=(1,), shared_layers=(1,), shared_dim=2, per_relation=3,
        recipe=SHORT,
    )  # fmt: skip
    return run_facts(lens, facts, corpus, plan, "subspacelens reproduce facts")


@pytest.fixture(scope="module")
def edited(lens, facts, corpus):
    plan = EditingPlan((0, 2), 3, SHORT, RomeRecipe(steps=2, prefixes=1), TraceRecipe(samples=1))
    return run_editing(lens, facts, corpus, plan, "subspacelens reproduce editing")


def test_facts_study_measures_every_patch_of_every_pair(record):
    assert len(record.pairs) == 6 and record.known == record.facts
    assert [(row.layer, row.stream) for row in record.layers] == [
        (0, "mlp_act"), (2, "mlp_act"), (1, "resid_post"),
    ]  # fmt: skip
    clean = np.array(record.clean)
    for row in record.layers[:2]:
        assert set(row.patches) == {"v", "full", "row", "null", "read_row", "read_null", "edit"}
        assert all(len(tried.flips) == 6 for tried in row.patches.values())
        null = np.array(row.patches["null"].logit_diff)
        np.testing.assert_allclose(null, clean, atol=1e-4)
        assert np.mean(row.patches["v"].logit_diff) < clean.mean()
        assert row.shape is not None and 0 < row.shape.random_null_norm < 1
        assert len(row.paraphrases["v"].flips) == len(record.paraphrase_of)
    assert {(shared.relation, shared.layer) for shared in record.shared} <= {
        ("<b>gift</b>", 1), ("<b>met</b>", 1),
    }  # fmt: skip


def test_facts_page_and_record(record, tmp_path):
    page = write_facts(record, tmp_path)
    assert load_facts_record(tmp_path / "facts.json").model_dump_json() == record.model_dump_json()
    text = page.read_text()
    assert "&lt;b&gt;gift&lt;/b&gt;" in text and "<b>gift</b>" not in text
    assert "GPT-2 XL" in text and "Not measured here" in text
    assert (tmp_path / "facts.md").read_text().count("| L") == 3
    (tmp_path / "facts.json").write_text("{}")
    with pytest.raises(ResultError, match="is not a record of facts"):
        load_facts_record(tmp_path / "facts.json")


def test_the_illusion_is_said_only_where_the_numbers_show_it(record):
    def with_flips(v: int, full: int, row: int):
        count = 40

        def tried(hits: int) -> Tried:
            return Tried(flips=[i < hits for i in range(count)], logit_diff=[1.0] * count)

        layer = record.layers[0]
        patches = {"v": tried(v), "full": tried(full), "row": tried(row), "edit": tried(v)}
        made = layer.model_copy(
            update={"patches": patches, "others": tried(0), "shape": None, "edit_variance": None}
        )
        return record.model_copy(
            update={
                "layers": [made],
                "residual": {},
                "units": list(range(count)),
                "clean": [1.0] * count,
                "paraphrase_known": [False] * len(record.paraphrase_known),
            }
        )

    assert summary(with_flips(30, 5, 9))[0].beats == {"full", "row"}
    assert summary(with_flips(30, 5, 12))[0].beats == {"full"}
    assert summary(with_flips(30, 12, 5))[0].beats == {"row"}
    assert summary(with_flips(1, 0, 0))[0].beats == set()
    assert "illusion is there" in findings(with_flips(30, 5, 9))[0]
    assert "as in the paper" in findings(with_flips(30, 5, 9))[1]
    assert "does not need" in findings(with_flips(30, 5, 20))[1]
    assert "does not appear" in findings(with_flips(30, 12, 5))[0]


def test_editing_study_and_its_page(edited, tmp_path):
    assert len(edited.pairs) == 6 and [row.layer for row in edited.layers] == [0, 2]
    page = write_editing(edited, tmp_path)
    again = load_editing_record(tmp_path / "editing.json")
    assert again.model_dump_json() == edited.model_dump_json()
    text = page.read_text()
    assert "<b>gift</b>" not in text and "Not measured here" in text
    for row in edit_summary(edited):
        assert row.rome.value is not None and row.rome.value <= 1
        assert abs(row.zero_row.value or 0) <= 1 and (row.essence.value or 0) >= 0
    assert edit_findings(edited)


def test_their_sections_of_the_docs(record, edited, tmp_path):
    made = {"made": Made.now("asked")}
    write_facts(record.model_copy(update=made), tmp_path)
    write_editing(edited.model_copy(update=made), tmp_path)
    text = block_of("facts", tmp_path)
    assert text.count("\n| 0 |") == text.count("\n| 2 |") == 2
    v = summary(record)[0].flips["v"].value
    assert v is not None and f"{v:.2f}".removeprefix("0") in text
    text = block_of("editing", tmp_path)
    assert "\n| 0 |" in text and f"{len(edited.pairs)} facts of two relations" in text


def test_what_the_theory_has_for_each_pair(record):
    """Half of the sum of cosine and one is at least the cosine: no direction is worse than all."""
    for row in record.layers:
        assert row.slopes is not None and len(row.slopes.cosine) == len(record.pairs)
        assert (row.slopes.best >= np.maximum(row.slopes.whole, 0) - 1e-9).all()
        assert (np.abs(row.slopes.cosine) <= 1 + 1e-9).all()


def test_the_edit_studied_is_at_least_as_strong_as_nothing(edited):
    before = np.array(edited.before.new)
    for row in edited.layers:
        assert np.array(row.rome.new).mean() > before.mean()


def width(estimate) -> float:
    return estimate.high - estimate.low


def test_correlation_and_its_interval():
    generator = np.random.default_rng(0)
    x, units = generator.normal(size=60), Units(np.arange(60))
    strong = correlation(x, x + 0.1 * generator.normal(size=60), units)
    assert strong.value is not None and strong.value > 0.95 and (strong.low or 0) > 0.9
    y = generator.normal(size=60)
    nothing = correlation(x, y, units)
    assert nothing.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert (nothing.low or 0) < 0 < (nothing.high or 0)
    assert correlation(x, np.ones(60), units).value is None
    copies = correlation(np.repeat(x, 5), np.repeat(y, 5), Units(np.repeat(np.arange(60), 5)))
    assert width(copies) == pytest.approx(width(nothing), rel=0.1)


def copied(record, times: int):
    """The record of each pair `times` over: nothing more is known than before."""
    count = len(record.pairs)

    def repeated(value):
        if isinstance(value, dict):
            return {name: repeated(x) for name, x in value.items()}
        if isinstance(value, list):
            return value * times if len(value) == count else [repeated(x) for x in value]
        return value

    return type(record).model_validate(repeated(record.model_dump()))


def test_pairs_of_one_base_prompt_narrow_no_interval(record, edited):
    """Of facts: medians too. Of edits: a fact that is given several objects."""
    row = summary(record)[0]
    several = summary(copied(record, 9))[0]
    for one, many in (
        (row.fraction["v"], several.fraction["v"]),
        (row.null_norm, several.null_norm),
        (row.others, several.others),
    ):
        assert many.value == one.value and width(many) >= 0.9 * width(one)
    plain = edit_summary(edited)[0]
    edits = copied(edited, 9)
    again = edit_summary(edits)[0]
    for name in ("rome", "cos_vb", "ratio", "essence", "paraphrase", "trace"):
        one, many = getattr(plain, name), getattr(again, name)
        assert many.value == pytest.approx(one.value) and width(many) >= 0.9 * width(one), name
    assert width(again.correlation["trace and patch"]) >= 0.9 * width(
        plain.correlation["trace and patch"]
    )
    assert width(unedited(edits)["neighbour"]) >= 0.9 * width(unedited(edited)["neighbour"])


def test_plans_cover_the_model():
    assert facts_plan(30).layers == tuple(range(0, 30, 3))
    assert editing_plan(30, step=2).layers == tuple(range(0, 30, 2))
    assert facts_plan(30, paper=True).recipe == Recipe(600, 600, (0.3, 0.1, 0.03, 0.01), 2)
    for plan in (facts_plan, editing_plan):
        with pytest.raises(TaskError, match="--step"):
            plan(30, step=0)
        assert max(plan(4, quick=True).layers) < 4


def test_commands(facts, lens, tiny_folder, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(as_counterfact(facts)))
    runner = CliRunner()
    out = tmp_path / "known.json"
    done = runner.invoke(
        app, ["facts", "known", "--model", tiny_folder, "--facts", str(path), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert len(json.loads(out.read_text())) == len(facts)
    bad = runner.invoke(app, ["facts", "known", "--facts", str(tmp_path / "none.json")])
    assert isinstance(bad.exception, LensError) and "cannot be read" in str(bad.exception)
    bad = runner.invoke(app, ["facts", "known", "--limit", "0"])
    assert isinstance(bad.exception, LensError)


def test_the_bench_times_the_same_work(lens, facts):
    (row,) = bench_facts(lens, facts, [1], pairs=4, steps=3, hook_steps=3)
    assert row["pairs"] == 4 and row["error"] < 1e-4
    assert row["hooks_seconds"] > 0 and row["replay_seconds"] > 0
