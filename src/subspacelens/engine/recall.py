"""What a model says after prompts: plain forward passes in batches, nothing patched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import TaskError
from ..core.progress import track
from ..model.hooks import check_ready, exclusive, stopping_after
from ..model.lens import LensModel
from ..tasks.answers import Tokens
from ..tasks.facts import Fact, fact_prompt, object_tokens
from ..tasks.pairset import PairSet, Prompt, Task
from .batches import padded, prompt_batches

LOGIT_ROWS = 256


@dataclass(frozen=True)
class Recall:
    """`top` (n,): the most likely next token over the whole vocabulary. `log_probs` (n, m): of the
    tokens asked for, in nats."""

    top: Tensor
    log_probs: Tensor

    @property
    def probs(self) -> Tensor:
        return self.log_probs.exp()


Around = Callable[[list[int]], AbstractContextManager[None]]
"""What to do to the model while it reads the prompts of these numbers, one a row."""


def recall(
    lens: LensModel,
    prompts: Sequence[Prompt],
    tokens: Tensor,
    what: str = "recall",
    around: Around | None = None,
) -> Recall:
    """The next token after each prompt, and how likely `tokens` (n, m) are. The weights are used
    as they are at the moment, edits included."""
    hidden = last_hidden(lens, prompts, what, around)
    tops, log_probs = [], []
    with torch.no_grad():
        for rows, wanted in zip(hidden.split(LOGIT_ROWS), tokens.split(LOGIT_ROWS), strict=True):
            logs = lens.map.tail.logits(rows).float().log_softmax(-1).cpu()
            tops.append(logs.argmax(-1))
            log_probs.append(logs.gather(1, wanted))
    return Recall(torch.cat(tops), torch.cat(log_probs))


def last_hidden(
    lens: LensModel,
    prompts: Sequence[Prompt],
    what: str = "recall",
    around: Around | None = None,
) -> Tensor:
    """The last block's output at the last column of each prompt, (n, d_model). Without `around`
    each distinct prompt runs once."""
    first: dict[tuple[int, ...], int] = {}
    same = [
        first.setdefault(prompt.ids, number) if around is None else number
        for number, prompt in enumerate(prompts)
    ]
    batches = prompt_batches(
        sorted(set(same)), lambda number: len(prompts[number].ids), lens.map.pads
    )
    last: dict[int, Tensor] = {}
    for batch in track(batches, what):
        ids, mask, positions = (
            tensor.to(lens.device) for tensor in padded([prompts[i].ids for i in batch])
        )
        extra = {"position_ids": positions} if lens.map.accepts_positions else {}
        with exclusive(lens.model), torch.no_grad():
            check_ready(lens.model)
            with (
                nullcontext() if around is None else around(batch),
                stopping_after(lens.map.blocks[-1].module) as ending,
            ):
                lens.map.inner(input_ids=ids, attention_mask=mask, use_cache=False, **extra)
        last |= zip(batch, ending.output[:, -1], strict=True)
    return torch.stack([last[number] for number in same])


def goes_on(
    lens: LensModel, asked: Sequence[tuple[Prompt, Sequence[Tokens]]], what: str = "recall"
) -> list[bool]:
    """Whether the model continues each prompt with one of the texts beside it, given as token ids:
    each token of that is the most likely one over the whole vocabulary, after those before it."""
    steps = [
        (number, which, replace(prompt, ids=prompt.ids + tokens[:i]), tokens[i])
        for number, (prompt, texts) in enumerate(asked)
        for which, tokens in enumerate(texts)
        for i in range(len(tokens))
    ]
    numbers, which, prompts, tokens = zip(*steps, strict=True)
    said = recall(lens, prompts, torch.tensor(tokens)[:, None], what).top.tolist()
    fine = {(number, each): True for number, each in zip(numbers, which, strict=True)}
    for number, each, top, token in zip(numbers, which, said, tokens, strict=True):
        fine[number, each] &= top == token
    return [
        any(fine[number, each] for each in range(len(texts)))
        for number, (_, texts) in enumerate(asked)
    ]


def known_facts(
    lens: LensModel, facts: Sequence[Fact], *, answers: str = "first"
) -> tuple[Fact, ...]:
    """The facts whose prompt the model continues, with its most likely token over the whole
    vocabulary each time, with the first token of the object, or with the `whole` of it.

    >>> known = known_facts(lens, embedded_facts(), answers="whole")
    """
    objects = [object_tokens(lens.tokenizer, fact.answer) for fact in facts]
    asked = [
        (fact_prompt(lens.tokenizer, fact), [tokens if answers == "whole" else tokens[:1]])
        for fact, tokens in zip(facts, objects, strict=True)
    ]
    known = goes_on(lens, asked, "facts")
    return tuple(fact for fact, is_known in zip(facts, known, strict=True) if is_known)


def only_correct(lens: LensModel, task: Task) -> Task:
    """The pairs of each split whose base prompt the model continues, with its most likely token
    over the whole vocabulary each time, with an answer that is accepted. Raises `TaskError` for a
    split of which none is left, but leaves out held-out templates of which none is.

    >>> task = only_correct(lens, pairs_task(lens.tokenizer, "pairs.jsonl"))
    """

    def right(pairs: PairSet) -> list[int]:
        asked = [(pair.base, pair.accepted.answers) for pair in pairs]
        return [i for i, fine in enumerate(goes_on(lens, asked, "answers")) if fine]

    kept = {split: right(pairs) for split, pairs in (("train", task.train), ("test", task.test))}
    for split, left in kept.items():
        if not left:
            raise TaskError(
                f"task {task.name}: the model gives the right answer to no {split} pair, so that "
                "none is left"
            )
    train, test = task.train.at(kept["train"]), task.test.at(kept["test"])
    held_out = right(task.held_out) if task.held_out else []
    return Task(
        task.name, train, test, task.held_out.at(held_out) if task.held_out and held_out else None
    )
