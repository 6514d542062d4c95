"""Facts (subject, relation, object), in the schema of CounterFact, and pairs of them to patch.

"The capital of France is" goes on with " Paris". Base and source of a pair are two facts of one
relation in the same words; label `subject` is the last token of the subject. With the subject's
activation taken from the source, the model is expected to say the source's object: answer = the
base's object, target = the source's, their first tokens alone (as in arXiv 2311.17030 §5 and in all
of Meng et al. 2022) or whole.

The embedded facts are made by `tools/make_facts.py` from public lists.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..core.errors import TaskError
from ..core.files import regular
from .answers import Compared, Tokens, starts
from .pairset import Pair, PairSet, Prompt
from .tokens import encode, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUBJECT, SUBJECT_START = "subject", "subject_start"
NEIGHBOURS = 6


@dataclass(frozen=True, kw_only=True)
class Fact:
    """`template` has `{}` for the subject. `new` is the object that an edit is to put in place of
    `answer`. `paraphrases` are whole prompts for the same fact, `neighbours` prompts about other
    subjects, each with the object that is right there."""

    id: str
    relation: str
    subject: str
    template: str
    answer: str
    new: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return self.template.format(self.subject)


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Object(_Loose):
    str: Annotated[str, Field(min_length=1)]


class _Rewrite(_Loose):
    prompt: Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]
    relation_id: str
    subject: Annotated[str, Field(min_length=1)]
    target_true: _Object
    target_new: _Object


class _Row(_Loose):
    """One row of CounterFact. `neighborhood_targets` is ours: the right object of each
    neighbourhood prompt, where it is not the row's own."""

    case_id: int | str
    requested_rewrite: _Rewrite
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    neighborhood_targets: tuple[str, ...] | None = None


_ROWS = TypeAdapter(tuple[_Row, ...])


def read_facts(path: Path | str, *, limit: int | None = None) -> tuple[Fact, ...]:
    """The first `limit` rows of a JSON file in the schema of CounterFact (Meng et al. 2022), as
    published. Raises `TaskError` that names the file and the first row that is wrong.

    >>> facts = read_facts("counterfact.json", limit=100)
    """
    try:
        rows = _ROWS.validate_json(regular(Path(path)).read_bytes())
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}): give a JSON file") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise TaskError(f"{path}, row {where}: {first['msg']}") from None
    if not rows:
        raise TaskError(f"{path}: no facts")
    return tuple(_fact(row) for row in rows[:limit])


def _fact(row: _Row) -> Fact:
    rewrite = row.requested_rewrite
    targets = row.neighborhood_targets
    if targets is None:
        targets = (rewrite.target_true.str,) * len(row.neighborhood_prompts)
    if len(targets) != len(row.neighborhood_prompts):
        raise TaskError(f"fact {row.case_id}: neighborhood_targets and _prompts differ in number")
    return Fact(
        id=str(row.case_id),
        relation=rewrite.relation_id,
        subject=rewrite.subject,
        template=rewrite.prompt,
        answer=rewrite.target_true.str,
        new=rewrite.target_new.str,
        paraphrases=row.paraphrase_prompts,
        neighbours=tuple(zip(row.neighborhood_prompts, targets, strict=True)),
    )


def as_counterfact(facts: Iterable[Fact]) -> list[dict]:
    """Rows that `read_facts` reads back."""
    return [
        {
            "case_id": fact.id,
            "requested_rewrite": {
                "prompt": fact.template,
                "relation_id": fact.relation,
                "subject": fact.subject,
                "target_true": {"str": fact.answer},
                "target_new": {"str": fact.new},
            },
            "paraphrase_prompts": list(fact.paraphrases),
            "neighborhood_prompts": [prompt for prompt, _ in fact.neighbours],
            "neighborhood_targets": [answer for _, answer in fact.neighbours],
        }
        for fact in facts
    ]


@cache
def embedded_facts() -> tuple[Fact, ...]:
    """About 1,100 facts of ten relations between countries, cities, regions, languages and money,
    each with two paraphrases. The new object is another one of the relation. Neighbours are other
    subjects with the same object, or, where the relation has none, with their own.

    >>> embedded_facts()[0].text
    """
    raw = json.loads(
        files("subspacelens.tasks").joinpath("data/facts.json").read_text(encoding="utf-8")
    )
    return tuple(
        fact for name, relation in raw["relations"].items() for fact in _expanded(name, relation)
    )


def _expanded(name: str, relation: Mapping) -> Iterable[Fact]:
    template, objects = relation["prompt"], relation["facts"]
    for subject, answer in objects.items():
        rng = random.Random(f"facts/{name}/{subject}")
        others = [other for other in objects if other != subject]
        alike = [other for other in others if objects[other] == answer]
        near = rng.sample(alike or others, min(NEIGHBOURS, len(alike or others)))
        new = rng.choice(sorted(set(objects.values()) - {answer}))
        yield Fact(
            id=f"{name}/{subject}",
            relation=name,
            subject=subject,
            template=template,
            answer=answer,
            new=new,
            paraphrases=tuple(text.format(subject) for text in relation["paraphrases"]),
            neighbours=tuple((template.format(other), objects[other]) for other in near),
        )


def fact_prompt(tokenizer: PreTrainedTokenizerBase, fact: Fact, text: str | None = None) -> Prompt:
    """The fact's own prompt, or `text` about the same subject, with labels `subject` (its last
    token) and `subject_start`. Raises `TaskError` if the text does not name the subject."""
    text = fact.text if text is None else text
    start = text.rfind(fact.subject)
    if start < 0:
        raise TaskError(f"fact {fact.id}: {text!r} does not name its subject {fact.subject!r}")
    spans = {SUBJECT: (start, start + len(fact.subject)), SUBJECT_START: (start, start + 1)}
    return tokenize_prompt(tokenizer, text, spans, f"fact {fact.id}")


def object_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The first token of an object that follows a word and a space."""
    return object_tokens(tokenizer, text)[0]


def object_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """The tokens of an object that follows a word and a space."""
    before = encode(tokenizer, "is")
    after = encode(tokenizer, f"is {text.strip()}")
    if len(after) <= len(before) or after[: len(before)] != before:
        raise TaskError(f"object {text!r} has no token of its own after a word")
    return tuple(after[len(before) :])


def fact_pairs(
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    per_relation: int = 5,
    fewest: int | None = None,
    seed: int = 0,
    answers: str = "first",
) -> tuple[tuple[Fact, Fact], ...]:
    """`per_relation` ordered pairs (base, source) of facts with one relation and one template and
    with objects of different first tokens, or, of `whole` answers, of which neither begins with the
    other (arXiv 2311.17030 §5: five), drawn for each relation
    that has as many, or at least `fewest`. No base serves twice while others are left.

    Raises `TaskError` if no relation has enough."""
    fewest = per_relation if fewest is None else fewest
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.relation, []).append(fact)
    chosen: list[tuple[Fact, Fact]] = []
    for relation, group in groups.items():
        tokens = {fact.id: object_tokens(tokenizer, fact.answer) for fact in group}
        size = 1 if answers == "first" else max(map(len, tokens.values()))
        able = [
            (a, b)
            for a, b in permutations(group, 2)
            if a.template == b.template and _part(tokens[a.id][:size], tokens[b.id][:size])
        ]
        random.Random(f"pairs/{relation}/{group[0].template}/{seed}").shuffle(able)
        used: dict[str, int] = {}
        ranked = []
        for place, pair in enumerate(able):
            turn = used[pair[0].id] = used.get(pair[0].id, -1) + 1
            ranked.append((turn, place, pair))
        if len(able) >= max(1, fewest):
            chosen += [pair for _, _, pair in sorted(ranked, key=lambda r: r[:2])[:per_relation]]
    if not chosen:
        raise TaskError(f"no relation has {fewest} pairs of facts with different objects")
    return tuple(chosen)


def _part(first: Tokens, second: Tokens) -> bool:
    return not starts(first, second) and not starts(second, first)


def pair_set(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[Fact, Fact]],
    *,
    split: str = "test",
    paraphrase: int | None = None,
    answers: str = "first",
) -> PairSet:
    """Pairs of prompts for patching: the facts' own prompts, or paraphrase number `paraphrase` of
    both. Answers are the objects' first tokens, or the `whole` objects. Raises `TaskError` if a
    fact has no such paraphrase, or one object is the beginning of the other."""

    def prompt(fact: Fact) -> Prompt:
        if paraphrase is None:
            return fact_prompt(tokenizer, fact)
        if paraphrase >= len(fact.paraphrases):
            raise TaskError(f"fact {fact.id} has no paraphrase number {paraphrase}")
        return fact_prompt(tokenizer, fact, fact.paraphrases[paraphrase])

    def pair(base: Fact, source: Fact) -> Pair:
        objects = [object_tokens(tokenizer, fact.answer) for fact in (base, source)]
        answer, target = objects if answers == "whole" else [each[:1] for each in objects]
        compared = Compared.of(
            {base.answer: answer}, {source.answer: target}, f"facts {base.id} and {source.id}"
        )
        beginning = str(tokenizer.decode([*compared.beginning]))
        return Pair.comparing(
            compared, beginning, prompt(base), prompt(source), template=base.relation
        )

    return PairSet("facts", split, tuple(pair(base, source) for base, source in pairs))
