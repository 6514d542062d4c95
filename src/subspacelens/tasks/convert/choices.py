"""What a user may choose when pairs are converted, and what all layouts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SAME_ANSWER = "answer and target are the same"
_OPENING = tuple(" \t\n\"'([{/`")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """`columns`: the table's column of each field of a pair, by its name where it is not here.
    `labels`: the column, or those of base and of source, with a label's piece of text.
    `counterfactual`: which of a record's counterfactuals is the source. `as_written`: answers stay
    as they are, and no space is put before them."""

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    counterfactual: str | None = None
    as_written: bool = False

    def answer(self, prompt: str, text: object) -> str:
        """An answer with the space that it has after the prompt."""
        if text in (None, ""):
            raise ValueError("an answer is empty")
        answer = str(text)
        if self.as_written or answer[:1].isspace() or prompt.endswith(_OPENING):
            return answer
        return f" {answer}"


def nth(text: str, piece: str, number: int) -> str:
    """How a label names occurrence `number` of `piece`, counted from 1 or, below 0, from the end;
    empty where it is not there."""
    count = text.count(piece) if piece else 0
    number = count + 1 + number if number < 0 else number
    if not 1 <= number <= count:
        return ""
    return piece if count == 1 else f"{piece}#{number}"
