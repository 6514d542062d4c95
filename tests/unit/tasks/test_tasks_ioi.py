import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from helpers_tokenizer import bpe_tokenizer, ioi_data, ioi_text, ioi_tokenizer, word_tokenizer
from subspacelens.core.errors import TaskError
from subspacelens.tasks import PairSet, ioi

SMALL = {"train": 24, "test": 20, "held_out": 8}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def tokenizer(request):
    return ioi_tokenizer(bos=request.param)


@pytest.fixture(scope="module")
def task(tokenizer):
    return ioi(tokenizer)


def splits(task) -> tuple[PairSet, PairSet, PairSet]:
    return task.train, task.test, task.held_out


def prompts(pairs) -> set[str]:
    return {prompt.text for pair in pairs for prompt in (pair.base, pair.source)}


def words(pairs, kind: str) -> set[str]:
    spoken = {
        word
        for text in prompts(pairs)
        for word in text.removeprefix("Then, ").replace(".", "").split()
    }
    return spoken & set(ioi_data()[kind])


def test_data_is_well_formed():
    data = ioi_data()
    for kind in ("names", "objects", "places"):
        assert len(set(data[kind])) == len(data[kind])
    train, held_out = data["templates"]["train"], data["templates"]["held_out"]
    assert len(train) >= 4 and len(held_out) >= 2 and not train.keys() & held_out.keys()
    for text in [*train.values(), *held_out.values()]:
        assert text.startswith("Then, {A} and {B} ") and ". {C} " in text and text.endswith(" to")


def test_default_sizes_and_labels(task):
    assert [len(pairs) for pairs in splits(task)] == [192, 200, 64]
    assert all(pairs.labels == ("IO", "S1", "S2", "END") for pairs in splits(task))
    assert len({len(pair.base.ids) for pair in task.train}) > 1


def test_columns_hold_the_names(task, tokenizer):
    for pairs in splits(task):
        for pair in pairs:
            for prompt in (pair.base, pair.source):
                said = {x: tokenizer.decode([prompt.ids[prompt.columns[x]]]) for x in pairs.labels}
                subject = prompt.text.split(". ")[1].split()[0]
                first, _, second = prompt.text.removeprefix("Then, ").split()[:3]
                other = second if subject == first else first
                assert said == {
                    "IO": f" {other}",
                    "S1": f" {subject}",
                    "S2": f" {subject}",
                    "END": " to",
                }
                assert prompt.columns["S1"] < prompt.columns["S2"] < prompt.columns["END"]
                assert prompt.columns["END"] == len(prompt.ids) - 1
            assert tokenizer.decode([pair.answer]) == f" {other}"
            assert tokenizer.decode([pair.target]) == f" {subject}"


def test_base_and_source_differ_in_the_order_of_the_first_names_only(task):
    for pairs in splits(task):
        for pair in pairs:
            base, source = pair.base, pair.source
            swap = {base.columns["IO"]: base.columns["S1"], base.columns["S1"]: base.columns["IO"]}
            assert source.ids == tuple(
                base.ids[swap.get(column, column)] for column in range(len(base.ids))
            )
            assert source.columns["IO"] == base.columns["S1"]
            assert source.columns["S2"] == base.columns["S2"]


def test_z_is_the_position_of_the_repeated_name_and_is_balanced(task):
    for pairs in splits(task):
        for pair in pairs:
            z = tuple(
                int(prompt.columns["S1"] < prompt.columns["IO"])
                for prompt in (pair.base, pair.source)
            )
            assert pair.z == z and z[0] != z[1]
        assert Counter(pair.z[0] for pair in pairs) == {0: len(pairs) / 2, 1: len(pairs) / 2}
        for template in {pair.template for pair in pairs}:
            directions = Counter(pair.z[0] for pair in pairs if pair.template == template)
            assert directions[0] == directions[1]


def test_splits_share_no_word_and_no_prompt(task):
    train, test, held_out = splits(task)
    for kind in ("names", "objects", "places"):
        assert not words(train, kind) & (words(test, kind) | words(held_out, kind))
        assert len(words(test, kind)) >= 10
    assert {pair.template for pair in train} == {pair.template for pair in test}
    assert not {pair.template for pair in train} & {pair.template for pair in held_out}
    everything = [text for pairs in splits(task) for text in prompts(pairs)]
    assert len(set(everything)) == len(everything) == 2 * (192 + 200 + 64)


def test_a_split_depends_on_its_own_size_and_the_seed(tokenizer):
    task, again = ioi(tokenizer, **SMALL), ioi(tokenizer, **SMALL)
    other = ioi(tokenizer, train=24, test=200, held_out=0)
    assert [p.sha256 for p in splits(task)] == [p.sha256 for p in splits(again)]
    assert other.train.sha256 == task.train.sha256 and other.held_out is None
    assert other.test[:20].sha256 == task.test.sha256
    assert ioi(tokenizer, **SMALL, seed=1).train.sha256 != task.train.sha256


def test_pairs_do_not_depend_on_the_hash_seed():
    code = (
        "from helpers_tokenizer import ioi_tokenizer; from subspacelens.tasks import ioi; "
        "t = ioi(ioi_tokenizer(), train=24, test=20, held_out=8); "
        "print([[p.base.text for p in s] for s in (t.train, t.test, t.held_out)])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = ioi(ioi_tokenizer(), **SMALL)
    assert seen == {str([[pair.base.text for pair in pairs] for pairs in splits(here)]) + "\n"}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 0}, r"train=0: give at least 1"),
        ({"test": -1}, r"test=-1: give at least 1"),
        ({"held_out": -1}, r"held_out=-1: give at least 0"),
    ],
)
def test_refuses_sizes(tokenizer, sizes, message):
    with pytest.raises(TaskError, match=message):
        ioi(tokenizer, **sizes)


def names_only(*names: str):
    """A tokenizer that knows these names as tokens and everything else in pieces."""
    return bpe_tokenizer(" ".join(["", *names, "to"]))


def test_refuses_a_tokenizer_with_few_names():
    names = ioi_data()["names"]
    with pytest.raises(TaskError, match=rf"7 of {len(names)} names are one token .* 8 are needed"):
        ioi(names_only(*names[:7]), **SMALL)


def test_all_different_pairs_can_be_asked_for_and_no_more():
    data = ioi_data()
    kept = {
        "names": data["names"][:8],
        "objects": data["objects"][:4],
        "places": data["places"][:4],
    }
    tokenizer = word_tokenizer([*kept["names"], *kept["objects"], *kept["places"], "to"])
    full = len(data["templates"]["train"]) * (4 * 3) * 2 * 2
    task = ioi(tokenizer, train=full, test=4, held_out=0)
    assert len(prompts(task.train)) == 2 * full
    assert words(task.train, "names") == set(kept["names"][::2])
    assert words(task.train, "objects") == set(kept["objects"][::2])
    message = rf"train={full + 1}: template \w+ makes only 48 different pairs .*: ask for fewer"
    with pytest.raises(TaskError, match=message):
        ioi(tokenizer, train=full + 1, test=4)


def test_unknown_names_are_not_used():
    known = set(ioi_data()["names"][:10])
    text = ioi_text().replace("Then ", "Then, ") + " Then,"
    vocabulary = [word for word in text.split() if word not in set(ioi_data()["names"]) - known]
    task = ioi(word_tokenizer([*vocabulary, *(f"{w}." for w in vocabulary)]), **SMALL)
    assert words(task.train, "names") | words(task.test, "names") <= known


def test_a_tokenizer_that_adds_the_space_itself():
    text = ioi_text().split()
    task = ioi(word_tokenizer([*text, *(f"{w}." for w in text), "Then,"], metaspace=True), **SMALL)
    assert all(p.base.ids[p.base.columns["IO"]] == p.answer for p in task.train)


def test_a_name_that_is_split_otherwise_in_a_sentence_is_refused():
    tokenizer = word_tokenizer([*ioi_text().split(), "Then,"])
    mary, john = (tokenizer.convert_tokens_to_ids(name) for name in ("Mary", "John"))

    class Odd(type(tokenizer)):
        def __call__(self, text, **options):
            encoding = super().__call__(text, **options)
            if text.startswith("Then"):
                ids = encoding["input_ids"]
                encoding["input_ids"] = [john if i == mary else mary for i in ids]
            return encoding

    tokenizer.__class__ = Odd
    with pytest.raises(TaskError, match="splits names otherwise inside a sentence"):
        ioi(tokenizer, **SMALL)
