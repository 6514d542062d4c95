"""The models that are shipped do what they were trained to do, and are audited as others are."""

from __future__ import annotations

import pytest

from subspacelens.bench.trained import trained_rates, trained_truth
from subspacelens.bench.truth import check, load_trained, parity_task, trained_names


@pytest.mark.parametrize("name", trained_names())
def test_z_lives_where_it_was_trained_to(name):
    scores = check(load_trained(name), pairs=512, seed=5)
    assert {"task", "swap", "others", "whole"} <= scores.keys()
    assert min(scores.values()) >= 0.99, scores


def test_pairs_differ_in_z_and_in_all_else():
    task = parity_task(train=64, test=64, seed=3)
    assert task.train.apart_from(task.test, "SEP") == list(range(64))
    for pair in (*task.train, *task.test):
        assert pair.z is not None and sum(pair.z) == 1
        _, *names, a, b, c, _, _ = pair.base.text.split()
        z, w = (int(a[1]) + int(b[1])) % 2, int(c[1]) % 2
        expected = [f"{'xy'[w]}{name[1:]}" for name in (names[z], names[1 - z])]
        tokenizer = load_trained("mlp").lens.tokenizer
        assert tokenizer.convert_ids_to_tokens([pair.answer, pair.target]) == expected


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return trained_truth(["mlp"], elsewhere=False, pairs=64)


def test_what_was_trained_is_natural_and_does_what_the_whole_component_does(rows):
    (truth,) = [row for row in rows if row["fit"] == "truth"]
    assert truth["known"] and truth["truth"] == "faithful"
    assert truth["cosine"] == pytest.approx(1) and truth["natural"] == pytest.approx(1, abs=0.02)
    assert truth["beyond"] == pytest.approx(0, abs=0.02)
    assert truth["fldd"] == pytest.approx(truth["whole_fldd"], abs=0.1)
    assert truth["verdict"] is not None


def test_a_row_is_right_or_wrong_only_where_truth_and_verdict_say_so(rows):
    for row in rows:
        said = {"faithful": "faithful", "partial": "faithful", "illusory": "illusory"}
        known = row["truth"] in ("faithful", "illusory")
        expected = said.get(row["verdict"], row["truth"]) == row["truth"]
        assert row["right"] == (expected if known and row["verdict"] in said else None)
    (random,) = [row for row in rows if row["fit"] == "random"]
    assert random["truth"] == "idle" and random["verdict"] is None
    rates = trained_rates(rows)
    assert rates["truth"]["of"] == 1 and "random" not in rates
