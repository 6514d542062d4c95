"""From text and character spans to token ids and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.errors import TaskError
from ..core.site import LONGEST_LABEL, label_problem
from .pairset import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "END"


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    spans: Mapping[str, tuple[int, int]],
    where: str,
    *,
    special: bool = True,
) -> Prompt:
    """Tokenises `text` once, the tokenizer's own special tokens included, or, without `special`,
    only those that are written in it. A beginning-of-text token that is written in it is not put
    before it a second time.

    `spans` maps a label to characters [start, end) of `text`, counted in code points. Its column
    is that of the last token that overlaps the span, white space at the span's edges aside: the
    span "Mary " is the token " Mary", not the one that begins with the space. `END` is added and
    is the last column. `where` opens every message.

    Raises `TaskError` if the tokenizer has no offsets or appends a token after the text, the text
    is empty, a label cannot be part of a site, or a span is empty, outside, or without a token.
    """
    if not tokenizer.is_fast:
        raise TaskError(
            f"{where}: {type(tokenizer).__name__} is a slow tokenizer without character offsets: "
            "load the fast one (a model folder with tokenizer.json)"
        )
    if not encode(tokenizer, text):
        raise TaskError(f"{where}: the prompt is empty: write the text that the model is to go on")
    for label, span in spans.items():
        _check_span(label, span, text, where)
    encoding = tokenizer(
        text,
        add_special_tokens=special and not doubles_bos(tokenizer, text),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    ).data
    ids = encoding["input_ids"]
    if encoding["special_tokens_mask"][-1]:
        raise TaskError(
            f"{where}: the tokenizer appends {tokenizer.convert_ids_to_tokens(ids[-1])} after the "
            "prompt, so that nothing is predicted at its last word: turn that off "
            "(add_eos_token=False)"
        )
    offsets = encoding["offset_mapping"]
    columns = {label: _column(label, span, text, offsets, where) for label, span in spans.items()}
    return Prompt(text, tuple(ids), {**columns, END: len(ids) - 1})


def doubles_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether `text` begins with the token that the tokenizer puts before every text itself."""
    bos = tokenizer.bos_token
    return (
        isinstance(bos, str)
        and text.startswith(bos)
        and tokenizer(text).data["input_ids"][:2] == 2 * [tokenizer.bos_token_id]
    )


def answer_token(tokenizer: PreTrainedTokenizerBase, text: str, where: str) -> int:
    """The one token that `text` is, encoded as written and without special tokens.

    Most tokenizers keep a word's leading space in its token: after a prompt without trailing
    space the answer is " Mary", not "Mary", which may be a token too and is then taken as given.

    Raises `TaskError` if it is several tokens, none, or unknown to the tokenizer.
    """
    ids = encode(tokenizer, text)
    if tokenizer.unk_token_id in ids and text.strip() != tokenizer.unk_token:
        raise TaskError(f"{where}: {text!r} is unknown to the tokenizer: choose another answer")
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise TaskError(f"{where}: {text!r} is no token: write an answer")
    pieces = " ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(ids[:8]))
    raise TaskError(
        f"{where}: {text!r} is {len(ids)} tokens ({pieces}{' ...' * (len(ids) > 8)}), not one: "
        f"{_answer_hint(tokenizer, text)}"
    )


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, after: str, where: str
) -> tuple[int, ...]:
    """The tokens of an answer that goes on with the prompt `after`, encoded as written and without
    special tokens.

    Raises `TaskError` if there are none, one is unknown to the tokenizer, or a space before the
    text is evidently missing, or one too many: it would be one token with it, or without.
    """
    ids = encode(tokenizer, text)
    if len(ids) == 1 or not ids or (tokenizer.unk_token_id in ids and tokenizer.unk_token != text):
        return (answer_token(tokenizer, text, where),)
    pieces = tokenizer.convert_ids_to_tokens(encode(tokenizer, text.lstrip()))
    spaced = text == text.lstrip() and after[-1:].isalnum() and text[:1].isalnum()
    if (spaced and len(encode(tokenizer, f" {text}")) == 1) or (
        text != text.lstrip() and len(pieces) == 1 and pieces[0].startswith("▁")
    ):
        answer_token(tokenizer, text, where)
    return tuple(ids)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` alone, without special tokens."""
    return tokenizer(text, add_special_tokens=False).data["input_ids"]


def _answer_hint(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    bare = text.lstrip()
    if text == bare:
        spaced = f" {text}"
        if len(encode(tokenizer, spaced)) == 1:
            return f"with a leading space, {spaced!r}, it is one; write it so"
    elif len(ids := encode(tokenizer, bare)) == 1:
        if str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁"):
            return f"this tokenizer adds the leading space itself; write {bare!r}, which is one"
        return f"only without its leading space, {bare!r}, is it one; choose another answer"
    return "choose an answer of one token"


def _check_span(label: str, span: tuple[int, int], text: str, where: str) -> None:
    start, end = span
    if label == END:
        raise TaskError(f"{where}: label {END} is always the last token: give yours another name")
    white = any(map(str.isspace, label))
    problem = "it has white space" if white else label_problem(label)
    if problem is not None:
        shown = label[:LONGEST_LABEL]
        raise TaskError(f"{where}: label {shown!r} cannot be part of a site: {problem}")
    if start == end:
        raise TaskError(
            f"{where}: label {label}: span [{start}, {end}) is empty: end is one past the last "
            "character"
        )
    if not 0 <= start < end <= len(text):
        raise TaskError(
            f"{where}: label {label}: span [{start}, {end}) does not fit the text of {len(text)} "
            "characters: give 0 <= start < end <= length"
        )


def _column(
    label: str,
    span: tuple[int, int],
    text: str,
    offsets: Sequence[tuple[int, int]],
    where: str,
) -> int:
    start, end = span
    inside = text[start:end]
    if inside.strip():
        start, end = end - len(inside.lstrip()), start + len(inside.rstrip())
    for column in reversed(range(len(offsets))):
        first, last = offsets[column]
        if max(first, start) < min(last, end):
            return column
    raise TaskError(
        f"{where}: label {label}: no token covers span [{span[0]}, {span[1]}), {inside!r}: "
        "move the span onto a word"
    )
