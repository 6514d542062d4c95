"""`check`: what the model sees of a file of pairs; and the summary that others begin with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..core.format import counted, percent
from ..core.progress import showing_progress
from .options import Device, Dtype, Model, Skip, loaded
from .printing import PlainTable, paragraph, printable, say, show

Show = Annotated[int, typer.Option(min=0, help="Pairs to show, token by token.")]

_MARKED = ("bold black on yellow", "bold black on cyan", "bold black on green", "bold black on red")
_COMMON = 5


def check(
    pairs: Annotated[Path, typer.Argument(help="A JSON Lines file of base/source pairs.")],
    model: Model = "smollm2",
    show: Show = 2,
    skip: Skip = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Show what the model sees of a file of pairs, all lines that are bad, and how many pairs the
    model gets right.

    Tokens stand between bars, and those with a label in brackets before its name. Exits with 1 if
    lines are bad, unless --skip leaves them out.
    """
    from ..tasks.pairs import check_lines, read_lines

    check_lines(pairs, skip=True)
    with showing_progress():
        lens = loaded(model, device, dtype)
        reading = read_lines(pairs, lens.tokenizer)
        reading = show_reading(lens, reading, pairs.stem, show)
    if reading.problems and not skip:
        raise typer.Exit(1)


def show_reading(lens, reading, name: str, count: int):
    """Prints all that a check has to say, and returns what is good and what is bad. Raises
    `TaskError` where no line is good."""
    from ..engine.answering import answered
    from ..tasks.inspection import inspected, remarks

    reading = _fitting(lens, reading)
    for problem in reading.problems:
        say(f"bad: {problem}")
    pairs = reading.pairs(name)
    for row in reading.rows[:count]:
        sides = ("base", "source"), (row.pair.base, row.pair.source), row.texts
        for side, prompt, answer in zip(*sides, strict=True):
            show(token_line(lens.tokenizer, prompt, side))
            paragraph(f"{'answer' if side == 'base' else 'target'}: {answer!r}")
    table = PlainTable("label", "column", "elsewhere in source", "same so far", "independent")
    for each in inspected(pairs).labels:
        first, last = each.columns
        table.add_row(
            each.label, str(first) if first == last else f"{first}-{last}", each.shifted, each.same,
            each.units,
        )  # fmt: skip
    table.show()
    say_summary(pairs, answered(lens, pairs), *remarks(reading, lens.tokenizer))
    bad = len(reading.problems)
    if bad:
        paragraph(f"- {bad} of {counted(bad + len(pairs), 'line')} bad, and named above")
    return reading


def _fitting(lens, reading):
    """The same, pairs that the model cannot read among the problems."""
    from ..engine.fitting_prompts import misfits
    from ..tasks.pairset import PairSet

    if not reading.rows:
        return reading
    bad = dict(misfits(lens, PairSet("pairs", "all", tuple(row.pair for row in reading.rows))))
    good = [number for number in range(len(reading.rows)) if number not in bad]
    return replace(
        reading,
        rows=tuple(reading.rows[number] for number in good),
        problems=(*reading.problems, *bad.values()),
    )


def token_line(tokenizer, prompt, title: str) -> Text:
    """The tokens of a prompt between bars, those with a label in brackets before its name."""
    labels: dict[int, list[str]] = {}
    for label, column in prompt.columns.items():
        labels.setdefault(column, []).append(label)
    styles = {name: _MARKED[n % len(_MARKED)] for n, name in enumerate(prompt.columns)}
    line = Text(f"{title}: ", style="bold", end="\n")
    for column, token in enumerate(prompt.ids):
        piece = _piece(tokenizer, token)
        if column:
            line.append("|", style="dim")
        if column in labels:
            line.append(f"[{piece}]", style=styles[labels[column][0]])
            line.append(",".join(labels[column]), style="bold")
        else:
            line.append(piece, style="not bold")
    return line


def _piece(tokenizer, token: int) -> str:
    """A token as it would be read, white space and line ends to be seen."""
    raw = str(tokenizer.convert_ids_to_tokens(token))
    text = raw.replace("▁", " ") if "▁" in raw else tokenizer.decode([token])
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def say_task(lens, activations) -> None:
    """The summary of the pairs that are fitted and judged on, from their captures."""
    import torch

    from ..engine.answering import Answering
    from ..engine.outcomes import Outcomes
    from ..tasks.pairset import PairSet

    parts = (activations.train, activations.test)
    pairs = PairSet(activations.task.name, "both", sum((part.pairs.pairs for part in parts), ()))
    clean = Outcomes(
        torch.cat([part.clean.logit_diff for part in parts]),
        torch.cat([part.clean.top for part in parts]),
    )
    say_summary(pairs, Answering.of(lens.tokenizer, pairs, clean))


def say_summary(pairs, answering, *remarks: str) -> None:
    """A few lines: what the pairs are like, and how many the model gets right."""
    from ..tasks.inspection import inspected

    for line in (*_words(inspected(pairs)), *_answers(answering), *remarks):
        paragraph(f"- {line}")


def _words(found) -> Iterator[str]:
    shortest, longest = found.lengths
    tokens = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    classes = ", ".join(f"z={z} in {counted(n, 'prompt')}" for z, n in found.classes.items())
    names = ", ".join(each.label for each in found.labels)
    yield (
        f"{counted(found.pairs, 'pair')} of {tokens} tokens, labels {names}; {classes or 'no z'}"
        + f"; {found.templates} templates" * (found.templates > 1)
        + f"; {counted(found.groups, 'group')}" * (found.groups > 0)
    )
    if found.unequal:
        yield f"in {counted(found.unequal, 'pair')} base and source are of different lengths"
    for each in found.labels:
        if each.shifted and each.label != "END":
            yield (
                f"{each.label} is in different columns of base and source in "
                f"{counted(each.shifted, 'pair')}: sites there need --shifted"
            )
        if each.same:
            yield (
                f"in {counted(each.same, 'pair')} base and source have the same tokens up to "
                f"{each.label}: a patch there changes nothing"
            )


def _answers(found) -> Iterator[str]:
    yield (
        f"the model says the answer in {found.right} of {counted(found.pairs, 'pair')} "
        f"({percent(found.right / found.pairs)}), and finds it likelier than the target in "
        f"{found.preferred} ({percent(found.preferred / found.pairs)})"
    )
    if found.instead:
        said = ", ".join(f"{token!r} ({count})" for token, count in found.instead[:_COMMON])
        yield f"instead it says {said}{', ...' * (len(found.instead) > _COMMON)}"
    if found.spaced:
        yield f"{found.spaced} of these are the answer but for the space before it"
