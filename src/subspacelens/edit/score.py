"""How well a fact was edited, and what else changed (Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.recall import Around, last_hidden, recall
from ..model.lens import LensModel
from ..tasks.facts import Fact, fact_prompt, object_token
from ..tasks.pairset import Prompt
from .rank_one import RankOneEdit, edited_each
from .rome import essence_prompt


@dataclass(frozen=True, eq=False)
class Probe:
    """Prompts by which edits of facts are scored, made once: `kind` (n,) indexes `KINDS`, `fact_of`
    (n,) the facts; `tokens` (n, 2) are the new object and the one that is right there."""

    prompts: tuple[Prompt, ...] = field(repr=False)
    fact_of: Tensor
    kind: Tensor
    tokens: Tensor
    essence: tuple[Prompt, ...] = field(repr=False)

    @property
    def facts(self) -> int:
        return len(self.essence)

    @property
    def own(self) -> Probe:
        """The facts' own prompts alone."""
        rows = (self.kind == 0).nonzero()[:, 0]
        prompts = tuple(self.prompts[row] for row in rows.tolist())
        return Probe(prompts, self.fact_of[rows], self.kind[rows], self.tokens[rows], self.essence)


KINDS = ("own", "paraphrase", "neighbour")


def probe(lens: LensModel, facts: Sequence[Fact]) -> Probe:
    """Each fact's own prompt, its paraphrases, its neighbours, and "{subject} is a"."""
    rows: list[tuple[Prompt, int, int, int, int]] = []
    tokenizer = lens.tokenizer
    for number, fact in enumerate(facts):
        new, true = (object_token(tokenizer, o) for o in (fact.new, fact.answer))
        rows.append((fact_prompt(tokenizer, fact), number, 0, new, true))
        for text in fact.paraphrases:
            rows.append((fact_prompt(tokenizer, fact, text), number, 1, new, true))
        for text, answer in fact.neighbours:
            token = object_token(tokenizer, answer)
            if token != new:
                rows.append((_plain(lens, text), number, 2, new, token))
    prompts, owner, kind, new, right = zip(*rows, strict=True)
    return Probe(
        prompts,
        torch.tensor(owner),
        torch.tensor(kind),
        torch.tensor([new, right]).T,
        tuple(essence_prompt(lens, fact) for fact in facts),
    )


def _plain(lens: LensModel, text: str) -> Prompt:
    ids = tuple(lens.tokenizer(text)["input_ids"])
    return Prompt(text, ids, {"END": len(ids) - 1})


@dataclass(frozen=True, eq=False, kw_only=True)
class EditScores:
    """Of every fact: probabilities `new` and `true` after its own prompt, whether the new object is
    the `top` token; the shares `paraphrase` (new likelier than old), `neighbour` (their own object
    likelier than the new) and `neighbour_top` (their own object the most likely of all), NaN where
    a fact has none; `essence` (facts,): KL in nats of what follows "{subject} is a"."""

    new: Tensor
    true: Tensor
    top: Tensor
    paraphrase: Tensor
    neighbour: Tensor
    neighbour_top: Tensor
    essence: Tensor


def score(
    lens: LensModel, probe: Probe, edits: list[RankOneEdit] | None, unedited: Tensor
) -> EditScores:
    """Scores one edit a fact (None: the model as it is). `unedited` is `essence_logs` without an
    edit."""
    around = _around(lens, [edits[i] for i in probe.fact_of.tolist()]) if edits else None
    recalled = recall(lens, probe.prompts, probe.tokens, "edits", around)
    after = unedited if edits is None else essence_logs(lens, probe, edits)
    kl = (unedited.exp() * (unedited - after)).sum(-1)
    own = probe.kind == 0
    likelier = (recalled.log_probs[:, 0] > recalled.log_probs[:, 1]).double()
    right = (recalled.top == probe.tokens[:, 1]).double()
    return EditScores(
        new=recalled.probs[own, 0].double(),
        true=recalled.probs[own, 1].double(),
        top=recalled.top[own] == probe.tokens[own, 0],
        paraphrase=_share(probe, likelier, 1),
        neighbour=_share(probe, 1 - likelier, 2),
        neighbour_top=_share(probe, right, 2),
        essence=kl.double().clamp(min=0),
    )


def essence_logs(lens: LensModel, probe: Probe, edits: list[RankOneEdit] | None = None) -> Tensor:
    """Log-probabilities of what follows "{subject} is a", (facts, vocabulary)."""
    around = _around(lens, edits) if edits else None
    hidden = last_hidden(lens, probe.essence, "essence", around)
    with torch.no_grad():
        return lens.map.tail.logits(hidden).float().log_softmax(-1).cpu()


def _around(lens: LensModel, edits: Sequence[RankOneEdit]) -> Around:
    return lambda rows: edited_each(lens, [edits[row] for row in rows])


def _share(probe: Probe, hits: Tensor, kind: int) -> Tensor:
    chosen = probe.kind == kind
    owner = probe.fact_of[chosen]
    count = torch.bincount(owner, minlength=probe.facts)
    return torch.bincount(owner, weights=hits[chosen], minlength=probe.facts) / count
