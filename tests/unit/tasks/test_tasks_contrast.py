"""Contrasted words: base and source differ in one token, and splits share no word."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from helpers_tokenizer import bpe_tokenizer
from subspacelens.core.errors import TaskError
from subspacelens.tasks import CONTRASTS, contrast

SIZES = dict(train=40, test=40, held_out=12)


@pytest.fixture(scope="module")
def tiny_tokenizer():
    path = files("subspacelens.tasks").joinpath("data/contrasts.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    return bpe_tokenizer(
        " the "
        + " ".join(re.findall(r"[\w,]+", str(data)))
        + " is are he she who which eat drink hot cold"
    )


@pytest.fixture(scope="module", params=CONTRASTS)
def task(request, tiny_tokenizer):
    return contrast(tiny_tokenizer, request.param, **SIZES)


def test_base_and_source_differ_in_the_labelled_token_alone(task):
    labels = {
        "agreement": "SUBJ",
        "pronoun": "NAME",
        "animacy": "NOUN",
        "sentiment": "ADJ",
        "food": "NOUN",
        "warmth": "NOUN",
    }
    label = labels[task.name]
    for pairs in (task.train, task.test, task.held_out):
        for pair in pairs:
            column = pair.base.columns[label]
            differing = [
                i
                for i, (a, b) in enumerate(zip(pair.base.ids, pair.source.ids, strict=True))
                if a != b
            ]
            assert differing == [column] == [pair.source.columns[label]]
            assert pair.base.columns["END"] == len(pair.base.ids) - 1
            assert sorted(pair.z) == [0, 1]


def test_answers_follow_z(task):
    for pairs in (task.train, task.test, task.held_out):
        said = {(pair.z[0], pair.answer, pair.target) for pair in pairs}
        assert len(said) == 2
        (_, a, b), (_, c, d) = sorted(said)
        assert (a, b) == (d, c) and a != b
        assert Counter(pair.z[0] for pair in pairs) == {0: len(pairs) // 2, 1: len(pairs) // 2}


def test_splits_share_no_word_and_no_held_out_template(task):
    words = [
        {pair.base.text.split()[i] for pair in pairs for i in [_differing_word(pair)]}
        for pairs in (task.train, task.test)
    ]
    assert not words[0] & words[1]
    templates = [{pair.template for pair in pairs} for pairs in (task.train, task.held_out)]
    assert not templates[0] & templates[1]
    assert len({pair.base.text for pair in task.train}) == len(task.train)


def _differing_word(pair) -> int:
    both = zip(pair.base.text.split(), pair.source.text.split(), strict=True)
    return next(i for i, (a, b) in enumerate(both) if a != b)


def test_the_same_seed_gives_the_same_pairs(tiny_tokenizer, task):
    again = contrast(tiny_tokenizer, task.name, **SIZES)
    other = contrast(tiny_tokenizer, task.name, seed=1, **SIZES)
    assert again.train.sha256 == task.train.sha256 != other.train.sha256


def test_bad_sizes_and_names_are_refused(tiny_tokenizer):
    with pytest.raises(TaskError, match="unknown contrast 'tense'"):
        contrast(tiny_tokenizer, "tense")
    with pytest.raises(TaskError, match="train=0"):
        contrast(tiny_tokenizer, "pronoun", train=0)
    with pytest.raises(TaskError, match="at most"):
        contrast(tiny_tokenizer, "agreement", train=10**6)
