import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from helpers_tokenizer import bpe_tokenizer, word_tokenizer
from subspacelens.core.errors import TaskError
from subspacelens.tasks import pairs_task, read_pairs
from subspacelens.tasks.pairs import read_lines
from subspacelens.tasks.tokens import answer_token, tokenize_prompt

TEXT = "The capital of France is Paris The capital of Italy is Rome Spain Madrid héllo 🙂 word"
TOKENIZER = bpe_tokenizer(f" {TEXT}", bos=True)
LINE = {
    "base": "The capital of France is",
    "source": "The capital of Italy is",
    "answer": " Paris",
    "target": " Rome",
    "tokens": {"subject": {"base": [15, 21], "source": [15, 20]}},
    "template": "capital",
    "z": {"base": 0, "source": 1},
}


def write(path, *lines):
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def numbered(n, template="", base="word", source="other"):
    return {
        "base": f"{base} {n}",
        "source": f"{source} {n}",
        "answer": " Paris",
        "target": " Rome",
        "template": template,
    }


def raises(message):
    return pytest.raises(TaskError, match=re.escape(message))


# Prompts


def test_prompt_has_special_tokens_and_columns():
    text = "The capital of France is"
    prompt = tokenize_prompt(TOKENIZER, text, {"land": (15, 21), "of": (12, 14)}, "here")
    assert list(prompt.ids) == TOKENIZER(text)["input_ids"] and prompt.text == text
    assert TOKENIZER.convert_ids_to_tokens(prompt.ids[0]) == "<s>"
    said = {label: TOKENIZER.decode([prompt.ids[c]]) for label, c in prompt.columns.items()}
    assert said == {"land": " France", "of": " of", "END": " is"}
    assert prompt.columns["END"] == len(prompt.ids) - 1


@settings(deadline=None)
@given(st.text(st.sampled_from("Paris Rome.hé🙂\n"), min_size=1), st.data())
def test_column_is_the_token_that_completes_the_span(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    spoken = text[start:end]
    column = tokenize_prompt(TOKENIZER, text, {"x": (start, end)}, "here").columns["x"]
    ids = TOKENIZER(text)["input_ids"]
    needed = text[: start + len(spoken.rstrip())] if spoken.strip() else text[:end]

    def bytes_of(tokens):
        return sum(len(TOKENIZER.convert_ids_to_tokens(token)) for token in tokens if token > 1)

    assert bytes_of(ids[:column]) < len(needed.encode()) <= bytes_of(ids[: column + 1])


@settings(deadline=None)
@given(st.lists(st.sampled_from(["The", "capital", "of", "France", "is"]), min_size=1), st.data())
def test_every_word_of_a_word_tokenizer_is_its_own_column(words, data):
    index = data.draw(st.integers(0, len(words) - 1))
    start = len(" ".join([*words[:index], ""]))
    prompt = tokenize_prompt(
        word_tokenizer(LINE["base"].split()),
        " ".join(words),
        {"x": (start, start + len(words[index]))},
        "here",
    )
    assert prompt.columns == {"x": index, "END": len(words) - 1}


def test_white_space_at_a_spans_edges_is_not_part_of_it():
    prompt = tokenize_prompt(
        TOKENIZER, "The capital of", {"bare": (4, 11), "wide": (3, 12), "space": (3, 4)}, "here"
    )
    assert prompt.columns["bare"] == prompt.columns["wide"] == prompt.columns["space"]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"x": (3, 3)}, "here: label x: span [3, 3) is empty"),
        ({"x": (3, 2)}, "here: label x: span [3, 2) does not fit the text of 5 characters"),
        ({"x": (-1, 2)}, "here: label x: span [-1, 2) does not fit the text of 5 characters"),
        ({"x": (2, 6)}, "here: label x: span [2, 6) does not fit the text of 5 characters"),
        ({"END": (0, 2)}, "here: label END is always the last token"),
        ({"S 2": (0, 2)}, "here: label 'S 2' cannot be part of a site"),
        ({"a@b": (0, 2)}, "here: label 'a@b' cannot be part of a site"),
        ({"": (0, 2)}, "here: label '' cannot be part of a site"),
        ({"*": (0, 2)}, "here: label '*' cannot be part of a site: a * stands for every"),
        ({"S" * 300: (0, 2)}, "it has 300 characters, 64 at most"),
        ({"S\x1b[31m": (0, 2)}, "here: label 'S\\x1b[31m' cannot be part of a site: it has a char"),
        ({"S\u202e": (0, 2)}, "cannot be printed"),
    ],
)
def test_refuses_spans(spans, message):
    with raises(message):
        tokenize_prompt(TOKENIZER, "Paris", spans, "here")


def test_refuses_a_span_without_a_token():
    with raises("here: label x: no token covers span [5, 6), ' ': move the span onto a word"):
        tokenize_prompt(word_tokenizer(["Paris", "Rome"]), "Paris Rome", {"x": (5, 6)}, "here")


def test_refuses_tokenizers_that_cannot_place_labels():
    with raises("here: ByT5Tokenizer is a slow tokenizer without character offsets"):
        tokenize_prompt(ByT5Tokenizer(), "Paris", {}, "here")
    with raises("here: the tokenizer appends </s> after the prompt"):
        tokenize_prompt(bpe_tokenizer(" Paris", eos=True), "Paris", {}, "here")
    written = tokenize_prompt(TOKENIZER, "Paris</s>", {"end": (5, 9)}, "here")
    assert written.columns["end"] == written.columns["END"] == len(written.ids) - 1


@pytest.mark.parametrize("tokenizer", [TOKENIZER, bpe_tokenizer(" Paris")], ids=["bos", "plain"])
def test_refuses_an_empty_prompt(tokenizer):
    with raises("here: the prompt is empty"):
        tokenize_prompt(tokenizer, "", {"x": (0, 1)}, "here")
    with raises("here: the prompt is empty"):
        tokenize_prompt(word_tokenizer(["Paris"]), " ", {}, "here")


# Answers


def test_answer_is_taken_as_written():
    bare = bpe_tokenizer(" Paris\nParis")
    ids = {text: answer_token(bare, text, "here") for text in (" Paris", "Paris")}
    assert {text: bare.decode([token]) for text, token in ids.items()} == {x: x for x in ids}


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        (TOKENIZER, " Paris Rome", "here: ' Paris Rome' is 2 tokens ('ĠParis' 'ĠRome'), not one: "),
        (TOKENIZER, " Rome" * 9, "is 9 tokens (" + "'ĠRome' " * 8 + "...), not one"),
        (TOKENIZER, "Paris", "with a leading space, ' Paris', it is one; write it so"),
        (TOKENIZER, "xyz", "is 3 tokens ('x' 'y' 'z'), not one: choose an answer of one token"),
        (TOKENIZER, "", "here: '' is no token: write an answer"),
        (
            bpe_tokenizer("Paris"),
            " Paris",
            "is 2 tokens ('Ġ' 'Paris'), not one: only without its leading space, 'Paris', is it "
            "one; choose another answer",
        ),
        (
            word_tokenizer(["Paris"], metaspace=True),
            " Paris",
            "is 2 tokens ('▁' '▁Paris'), not one: this tokenizer adds the leading space itself; "
            "write 'Paris', which is one",
        ),
        (word_tokenizer(["Paris"]), "Rome", "here: 'Rome' is unknown to the tokenizer"),
    ],
)
def test_refuses_answers(tokenizer, text, message):
    with raises(message):
        answer_token(tokenizer, text, "here")


# Files


def test_reads_pairs(tmp_path):
    short = {key: LINE[key] for key in ("source", "base", "answer", "target")}
    short["base"], short["answer"] = "The capital of Spain is", " Madrid"
    path = write(tmp_path / "lands.jsonl", LINE, "", short)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    pairs = read_pairs(path, TOKENIZER, "test")
    assert (pairs.name, pairs.split, len(pairs)) == ("lands", "test", 2)
    assert pairs.labels == ("END",)
    first, second = pairs
    assert (first.template, first.z) == ("capital", (0, 1))
    assert (second.template, second.z) == ("", None)
    assert TOKENIZER.decode([first.base.ids[first.base.columns["subject"]]]) == " France"
    assert TOKENIZER.decode([first.source.ids[first.source.columns["subject"]]]) == " Italy"
    assert TOKENIZER.decode([first.answer, first.target, second.answer]) == " Paris Rome Madrid"


def test_spans_count_characters_not_bytes(tmp_path):
    base = "🙂 héllo France"
    line = LINE | {"base": base, "tokens": {"x": {"base": [8, 14], "source": [15, 20]}}}
    (pair,) = read_pairs(write(tmp_path / "p", line), TOKENIZER)
    assert TOKENIZER.decode([pair.base.ids[pair.base.columns["x"]]]) == " France"


def without(key):
    return {name: value for name, value in LINE.items() if name != key}


def spans(**sides):
    return LINE | {"tokens": {"S2": sides}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'base'}", "not JSON (key must be a string at line 1 column 2): write one JSON object"),
        ('{"base": "a"', "not JSON (EOF while parsing an object"),
        ('{"base": "\\ud800"}', "not JSON ("),
        ("[1]", "not a JSON object: write base, source, answer and target"),
        (without("answer"), "field 'answer' is missing: add it"),
        ({}, "'base' is missing: add it; field 'source' is missing: add it; field 'answer' is"),
        (LINE | {"foil": "x"}, "unknown field 'foil': there are base, source, answer, target, "),
        (LINE | {"base": 3}, "field 'base' is 3: write a string, or an object with messages"),
        (LINE | {"base": {}}, 'field \'base.messages\': a chat is {"messages": [{"role": "user'),
        (LINE | {"base": {"messages": []}}, "field 'base.messages': a chat is {\"messages\": ["),
        (LINE | {"base": {"messages": [{"role": "user"}]}}, "field 'base.messages.0.content': a c"),
        (LINE | {"template": None}, "field 'template' is None: write a string"),
        (LINE | {"tokens": [1]}, "field 'tokens' is [1]: write an object"),
        (
            LINE | {"tokens": {"S2": [1, 2]}},
            "field 'tokens.S2' is [1, 2]: give base and source, or one",
        ),
        (spans(base=[0, 3]), "field 'tokens.S2.source' is missing: add it"),
        (
            spans(base=[0, 3], source=[0]),
            "field 'tokens.S2.source' is [0]: give a piece of the pro",
        ),
        (spans(base=[0, 3, 4], source=[0, 3]), "field 'tokens.S2.base' is [0, 3, 4]: give a pie"),
        (spans(base=[0, 3.5], source=[0, 3]), "field 'tokens.S2.base' is [0, 3.5]: give a piece"),
        (spans(base=[0, 3], source=0), "field 'tokens.S2.source' is 0: give a piece of the prompt"),
        (spans(base=[0, 3], source=[0, 3], both=[0, 3]), "unknown field 'tokens.S2.both': there a"),
        (spans(base=[0, 99], source=[0, 3]), "base: label S2: span [0, 99) does not fit the text"),
        (spans(base=[0, 3], source=[4, 4]), "source: label S2: span [4, 4) is empty"),
        (LINE | {"z": {"base": 0, "source": 0.5}}, "field 'z.source' is 0.5: z is a whole number"),
        (LINE | {"z": {"base": True, "source": 0}}, "field 'z.base' is True: z is a whole number"),
        (LINE | {"z": 1}, "field 'z' is 1: write an object"),
        (LINE | {"z": {"base": 1, "source": 1}}, "z is 1 in base and source: a pair must differ"),
        (LINE | {"source": LINE["base"]}, "base and source are the same text"),
        (LINE | {"target": " Paris"}, "answer and target are both ' Paris'"),
        (LINE | {"answer": []}, "field 'answer' is []: write a string, or a list of strings"),
        (LINE | {"answer": [" Rome", 3]}, "field 'answer' is [' Rome', 3]: write a string, or"),
        (LINE | {"answer": [" Paris", " Rome"]}, "answer and target are both ' Rome'"),
        (LINE | {"target": ""}, "target: '' is no token"),
        (
            LINE | {"target": " Paris Rome"},
            "answer ' Paris' is the beginning of target ' Paris Rome', so that who says the second",
        ),
        (LINE | {"variables": {"v": {"base": 1}}}, "field 'variables.v.source' is missing: add it"),
        (
            LINE | {"variables": {"v": {"base": [], "source": "b"}}},
            "field 'variables.v.base' is []: a value is a whole number or a string",
        ),
        (
            LINE | {"variables": {"v": {"base": 0, "source": 1, "says": ""}}},
            "unknown field 'variables.v.says': there are base, source, predicts",
        ),
        (
            LINE | {"variables": {"v": {"base": 0, "source": 1, "predicts": " Paris Rome"}}},
            "' Paris Rome', which variable v predicts, begins with the same token as ' Paris'",
        ),
        (
            LINE | {"answer": "Paris"},
            "answer: 'Paris' is 2 tokens ('Pa' 'ris'), not one: with a leading space, ' Paris', it",
        ),
        (LINE | {"base": ""}, "base: the prompt is empty"),
    ],
)
def test_names_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", LINE, "", line)
    with pytest.raises(TaskError) as caught:
        read_pairs(path, TOKENIZER)
    error = str(caught.value)
    assert error.startswith(f"{path}, line 3") and message in error and "\n" not in error


def test_refuses_one_token_as_answer_and_target(tmp_path):
    words = word_tokenizer([*LINE["base"].split(), "Italy", "Paris"])
    path = write(tmp_path / "p", without("tokens") | {"target": "Paris"})
    with raises("line 1: answer ' Paris' and target 'Paris' are the same token"):
        read_pairs(path, words)


def test_refuses_a_repeated_pair(tmp_path):
    path = write(tmp_path / "p", LINE, LINE | {"answer": " Madrid"})
    with raises(f"line 2: repeats the base and source of {path}, line 1: remove one"):
        read_pairs(path, TOKENIZER)


def test_all_bad_lines_are_found_at_once(tmp_path):
    bad = [LINE | {"answer": ""}, "[1]", LINE, without("base")]
    path = write(tmp_path / "p", LINE, *bad, numbered(1))
    reading = read_lines(path, TOKENIZER)
    numbers = [int(problem.split("line ")[1].split(",")[0].split(":")[0]) for problem in
               reading.problems]  # fmt: skip
    assert numbers == [2, 3, 4, 5] and len(reading.rows) == 2
    assert reading.rows[0].texts == (" Paris", " Rome")
    with raises(f"{path}, line 2, answer: '' is no token"):
        read_pairs(path, TOKENIZER)
    with raises("(3 more lines are bad: see `subspacelens check`, or --skip them)"):
        read_pairs(path, TOKENIZER)
    assert read_pairs(path, TOKENIZER, skip=True).pairs == tuple(row.pair for row in reading.rows)
    write(path, *(numbered(n) for n in range(9)), "[1]")
    task = pairs_task(TOKENIZER, path, skip=True)
    assert len(task.train) + len(task.test) == 9
    with raises(f"{path}: no line can be read as a pair: {path}, line 1: not a JSON object"):
        read_pairs(write(path, "[1]"), TOKENIZER, skip=True)


def test_refuses_files_without_pairs(tmp_path):
    path = tmp_path / "p.jsonl"
    with raises(f"{path}: cannot be read (No such file or directory)"):
        read_pairs(path, TOKENIZER)
    with raises("cannot be read (Is a directory)"):
        read_pairs(tmp_path, TOKENIZER)
    with raises(f"{path}: no pairs"):
        read_pairs(write(path, "", " "), TOKENIZER)
    path.write_bytes(json.dumps(LINE).encode() + b'\n{"base": "\xff"}\n')
    with raises(f"{path}, line 2: not UTF-8 (byte 11): save the file as UTF-8"):
        read_pairs(path, TOKENIZER)


# Splits


def texts(pairs):
    return {prompt.text for pair in pairs for prompt in (pair.base, pair.source)}


def check_division(task, path):
    parts = [task.train, task.test, *([task.held_out] if task.held_out else [])]
    divided = [pair for part in parts for pair in part]
    assert sorted(pair.base.text for pair in divided) == sorted(
        pair.base.text for pair in read_pairs(path, TOKENIZER)
    )
    sides = [texts(part) for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert [part.split for part in parts] == ["train", "test", "held_out"][: len(parts)]


def test_one_file_gives_a_third_to_the_test(tmp_path):
    lines = [numbered(n) for n in range(30)]
    task = pairs_task(TOKENIZER, write(tmp_path / "mine.jsonl", *lines))
    check_division(task, tmp_path / "mine.jsonl")
    assert (task.name, len(task.train), len(task.test), task.held_out) == ("mine", 20, 10, None)
    turned = pairs_task(TOKENIZER, write(tmp_path / "turned.jsonl", *reversed(lines)), name="mine")
    assert texts(turned.test) == texts(task.test) and turned.name == "mine"


def test_the_last_third_of_the_templates_is_held_out(tmp_path):
    path = write(tmp_path / "p", *(numbered(n, f"t{n % 5}") for n in range(40)))
    task = pairs_task(TOKENIZER, path)
    check_division(task, path)
    assert {pair.template for pair in task.held_out} == {"t4"}
    assert {pair.template for pair in [*task.train, *task.test]} == {"t0", "t1", "t2", "t3"}


def test_templates_that_share_a_prompt_count_as_one(tmp_path):
    lines = [numbered(n, f"t{n % 3}") for n in range(12)]
    lines[2]["source"] = lines[1]["source"]
    path = write(tmp_path / "p", *lines)
    task = pairs_task(TOKENIZER, path)
    check_division(task, path)
    assert task.held_out is None


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(0, 4)), min_size=1, unique=True))
def test_no_prompt_is_on_two_sides(tmp_path_factory, edges):
    lines = {
        (b, s): numbered(0, f"t{t}") | {"base": f"word {b}", "source": f"Rome {s}"}
        for b, s, t in edges
    }
    path = write(tmp_path_factory.mktemp("pairs") / "p", *lines.values())
    try:
        task = pairs_task(TOKENIZER, path)
    except TaskError as error:
        assert "cannot be divided into train and test" in str(error)
    else:
        check_division(task, path)
        known = {pair.template for pair in [*task.train, *task.test]}
        assert not known & {pair.template for pair in task.held_out or ()}


def labelled(n: int, first: str, **more) -> dict:
    """A pair whose label X ends with the first word: base and source differ by then."""
    prompts = {"base": f"{first} word {n}", "source": f"Rome {first} word {n}"}
    spans = {"base": (0, len(first)), "source": (0, 5 + len(first))}
    return numbered(n) | prompts | {"tokens": {"X": spans}} | more


def test_prompts_that_share_their_tokens_up_to_a_label_stay_together(tmp_path):
    lines = [labelled(n, ("Paris", "London", "Berlin")[n % 3]) for n in range(12)]
    task = pairs_task(TOKENIZER, write(tmp_path / "p", *lines))
    assert (len(task.train), len(task.test)) == (8, 4)
    assert task.test.apart_from(task.train, "X") == [0, 1, 2, 3]
    assert task.train.units_at("X").count == 2 and task.train.units_at("END").count == 8


def test_where_tokens_up_to_labels_join_all_whole_prompts_decide(tmp_path):
    path = write(tmp_path / "p", *(labelled(n, "Paris") for n in range(12)))
    task = pairs_task(TOKENIZER, path)
    check_division(task, path)
    assert len(task.test) == 4 and task.test.apart_from(task.train, "X") == []


def test_a_group_stays_on_one_side(tmp_path):
    lines = [numbered(n) | {"group": f"g{n % 4}"} for n in range(20)]
    task = pairs_task(TOKENIZER, write(tmp_path / "p", *lines))
    groups = [{pair.group for pair in part} for part in (task.train, task.test)]
    assert not groups[0] & groups[1]
    assert [len(part) for part in groups] == [part.units_at("END").count for part in
                                              (task.train, task.test)]  # fmt: skip
    train, test = (write(tmp_path / name, numbered(n) | {"group": "g"}) for n, name in
                   enumerate(("train", "test")))  # fmt: skip
    with raises(f"{test}, line 1: shares a group with {train}, line 1"):
        pairs_task(TOKENIZER, train, test)


def test_two_answers_tell_z(tmp_path):
    lines = [numbered(n) for n in range(4)]
    a, b = lines[0]["answer"], lines[0]["target"]
    lines[1] |= {"answer": b, "target": a}
    pairs = read_pairs(write(tmp_path / "p", *lines), TOKENIZER)
    assert {pair.z for pair in pairs} == {(0, 1), (1, 0)}
    assert pairs[1].z == pairs[0].z[::-1] == pairs[2].z[::-1]
    given = lines[0] | {"z": {"base": 1, "source": 0}}
    pairs = read_pairs(write(tmp_path / "p", given, *lines[1:]), TOKENIZER)
    assert [pair.z for pair in pairs] == [(1, 0), None, None, None]


def test_more_answers_tell_z_where_each_is_that_of_many_prompts(tmp_path):
    cities = (" Paris", " Rome", " word")

    def file(name: str, count: int):
        both = [{"answer": cities[n % 3], "target": cities[(n + 1) % 3]} for n in range(count)]
        return write(tmp_path / name, *(numbered(n) | each for n, each in enumerate(both)))

    pairs = read_pairs(file("many", 12), TOKENIZER)
    assert pairs.classes == cities and pairs[2].z == (" word", " Paris")
    assert read_pairs(file("few", 11), TOKENIZER).classes == ()
    several = {"answer": [" Paris", " word"], "target": " Rome"}
    lines = [numbered(n) | several for n in range(12)]
    pairs = read_pairs(write(tmp_path / "several", *lines), TOKENIZER)
    assert pairs.classes == (0, 1)


def test_two_files_have_one_z(tmp_path):
    """Two answers each, of three in all: neither file may tell z by its own two."""

    def file(name: str, numbers: range, answer: str, target: str):
        both = {"answer": answer, "target": target}
        return write(tmp_path / name, *(numbered(n) | both for n in numbers))

    train = file("train", range(4), " Paris", " Rome")
    test = file("test", range(4, 8), " Rome", " word")
    task = pairs_task(TOKENIZER, train, test)
    assert {pair.z for pair in (*task.train, *task.test)} == {None}
    same = file("same", range(4, 8), " Rome", " Paris")
    task = pairs_task(TOKENIZER, train, same)
    assert {pair.z for pair in task.train} == {pair.z[::-1] for pair in task.test}


def test_the_largest_group_stays_in_train(tmp_path):
    lines = [numbered(n) | {"base": "word"} for n in range(20)] + [numbered(99)]
    task = pairs_task(TOKENIZER, write(tmp_path / "p", *lines))
    assert (len(task.train), len(task.test)) == (20, 1)


@pytest.mark.parametrize("n", [1, 3])
def test_refuses_pairs_that_cannot_be_divided(tmp_path, n):
    path = write(tmp_path / "p", *(numbered(i) | {"base": "word"} for i in range(n)))
    with raises(f"{path}: the pairs cannot be divided into train and test"):
        pairs_task(TOKENIZER, path)


def test_files_of_their_own(tmp_path):
    train = write(tmp_path / "train", *(numbered(n, f"t{n}") for n in range(6)))
    test = write(tmp_path / "test", *(numbered(n, "t0") for n in range(6, 9)))
    held_out = write(tmp_path / "held", numbered(9, "new"))
    task = pairs_task(TOKENIZER, train, test, held_out, name="mine")
    assert [len(x) for x in (task.train, task.test, task.held_out)] == [6, 3, 1]
    assert {part.name for part in (task.train, task.test, task.held_out)} == {"mine"}
    assert pairs_task(TOKENIZER, train, test).held_out is None
    divided = pairs_task(TOKENIZER, train, held_out=held_out)
    assert [len(x) for x in (divided.train, divided.test, divided.held_out)] == [4, 2, 1]


def test_refuses_files_that_overlap(tmp_path):
    train = write(tmp_path / "train", numbered(0, "a"), numbered(1, "a"))
    test = write(tmp_path / "test", numbered(2), numbered(3) | {"source": "word 1"})
    with raises(f"{test}, line 2: shares a prompt with {train}, line 2"):
        pairs_task(TOKENIZER, train, test)
    held_out = write(tmp_path / "held", numbered(4, "b"), numbered(5, "a"))
    with raises(f"{held_out}, line 2: held-out pairs need a template that no train pair has"):
        pairs_task(TOKENIZER, train, held_out=held_out)
    held_out = write(tmp_path / "held", numbered(0, "b"))
    with raises(f"{held_out}, line 1: shares a prompt with {train}, line 1"):
        pairs_task(TOKENIZER, train, held_out=held_out)
