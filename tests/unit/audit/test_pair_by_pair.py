"""What an audit says of single pairs, and which of them it shows."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

import subspacelens as sl
from subspacelens.audit.pair_by_pair import chosen_pairs, marks
from subspacelens.model.loading import load_model
from subspacelens.tasks.tokens import tokenize_prompt

SITE = "L1.mlp_act@S2"


@pytest.fixture(scope="module")
def lens(tiny_folder):
    return load_model(tiny_folder)


@pytest.fixture(scope="module")
def captures(lens):
    return sl.capture_task(lens, sl.ioi(lens.tokenizer, train=24, test=30, held_out=0), [SITE])


@pytest.fixture(scope="module")
def result(lens, captures):
    return sl.audit(lens, captures, sl.fit(lens, captures.train, SITE, "pca"), budget="fast")


def test_a_row_a_pair_says_what_the_patches_do(lens, captures, result):
    frame = result.frame()
    chosen = frame["pair"].to_list()
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(30))
    effects = sl.patch(lens, captures, SITE, {"full": None, "subspace": result.subspace})
    for name, effect in effects.items():
        expected = effect.patched.logit_diff.numpy()[chosen]
        assert frame[name].to_list() == pytest.approx(expected.tolist(), abs=1e-4)
    expected = captures.test.clean.logit_diff.numpy()[chosen]
    assert frame["clean"].to_list() == pytest.approx(expected.tolist(), abs=1e-5)
    pairs = [captures.task.test[i] for i in chosen]
    assert frame["base"].to_list() == [pair.base.text for pair in pairs]
    assert frame["target"].to_list() == [lens.tokenizer.decode([p.target]) for p in pairs]
    nats = result.record.effects["subspace"].nats.value
    assert float((frame["clean"] - frame["subspace"]).mean()) == pytest.approx(nats, abs=1e-9)
    assert frame["row"].null_count() == 0


def test_a_patch_that_does_not_exist_is_a_column_of_nulls(result):
    pairs = result.record.pairs.model_copy(update={"patched": {"subspace": [1.0] * 2}} | {
        name: value[:2] for name, value in result.record.pairs if name != "patched"
    })  # fmt: skip
    frame = result.record.model_copy(update={"pairs": pairs}).frame()
    assert frame["row"].to_list() == [None, None] and frame.schema["row"] == pl.Float64


def test_a_row_a_test(result):
    frame = result.tests_frame()
    assert frame["test"].to_list() == list(result.record.tests)
    for row in frame.iter_rows(named=True):
        test = result.record.tests[row["test"]]
        assert (row["value"], row["low"], row["control"], row["reading"]) == (
            test.value, test.low, test.control, test.reading,
        )  # fmt: skip


def test_examples_say_what_the_model_does(lens, captures, result):
    record = result.record
    assert len(record.examples) == 12
    assert [each.kind for each in record.examples] == (
        ["typical"] * 4 + ["extreme"] * 4 + ["failing"] * 4
    )
    effects = sl.patch(lens, captures, SITE, {"full": None, "subspace": result.subspace})
    for example in record.examples:
        assert set(example.tops) == {"clean", "full", "subspace", "row"}
        pair = record.pairs.pair[example.row]
        tops = {name: effect.patched.top for name, effect in effects.items()}
        tops["clean"] = captures.test.clean.top
        for name, top in tops.items():
            assert example.tops[name][0].token == lens.tokenizer.decode([int(top[pair])])
            assert len(example.tops[name]) == 5


def test_the_label_is_marked(captures, result):
    pairs = result.record.pairs
    for base, spans in zip(pairs.base, pairs.base_marks, strict=True):
        ((start, end),) = spans
        name = base[start:end]
        assert base.count(name) == 2 and base.rindex(name) == start


def test_marks_are_left_out_where_the_text_does_not_tell(lens):
    prompt = tokenize_prompt(lens.tokenizer, "Then, Monica met", {"A": (6, 12)}, "here")
    assert marks([prompt], "A", lens.tokenizer) == [[(6, 12)]]
    assert marks([prompt], "B", lens.tokenizer) == marks([prompt], "A", None) == [[]]
    other = sl.Prompt("Then, Christine met", prompt.ids, prompt.columns)
    assert marks([other], "A", lens.tokenizer) == [[]]


def test_a_dozen_of_three_kinds_none_twice():
    random = np.random.default_rng(0)
    clean, drop = random.normal(3, 1, 200), random.normal(1, 1, 200)
    clean[[17, 5, 99]] = -3, -2, -1
    kinds = chosen_pairs(clean, drop)
    by_kind = {kind: [i for i, k in kinds.items() if k == kind] for kind in kinds.values()}
    assert {kind: len(each) for kind, each in by_kind.items()} == dict.fromkeys(by_kind, 4)
    order = np.argsort(drop)
    assert set(by_kind["extreme"]) == {*order[:2], *order[-2:]}
    gap = np.abs(drop - np.median(drop))
    assert set(by_kind["typical"]) == set(np.argsort(gap)[:4])
    assert by_kind["failing"][:2] == [17, 5]
    rest = [i for i in np.argsort(drop - clean) if kinds.get(i, "failing") == "failing"]
    assert by_kind["failing"][2:] == rest[:2]


@pytest.mark.parametrize("count", [1, 3, 7, 11])
def test_few_pairs_are_all_shown_once(count):
    random = np.random.default_rng(1)
    kinds = chosen_pairs(random.normal(3, 1, count), random.normal(1, 1, count))
    assert sorted(kinds) == list(range(count))


def test_a_record_whose_columns_do_not_fit_is_refused(result, tmp_path):
    path = result.save(tmp_path) / "audit.json"
    data = json.loads(path.read_text())
    for change, message in (
        (lambda d: d["pairs"]["clean"].pop(), "pairs: as many of each"),
        (lambda d: d["examples"][0].update(row=99), "there is no pair in row 99"),
    ):
        broken = json.loads(json.dumps(data))
        change(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(sl.ResultError, match=message):
            sl.load_audit(path)
    path.write_text(json.dumps(data))
    assert sl.load_audit(path) == result.record
