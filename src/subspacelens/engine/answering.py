"""How many pairs a model answers right, and what it says instead."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .outcomes import Outcomes, answers_of
from .recall import recall


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Of `pairs` base prompts: in `right` of them the model says the answer (`Outcomes.says`), in
    `preferred` it is at least likelier than the target. `instead` counts the
    other tokens that are the most likely, commonest first; `spaced` of these are the answer but for
    the white space before it.

    >>> answered(lens, ioi(lens.tokenizer).test).right
    """

    pairs: int
    right: int
    preferred: int
    spaced: int
    instead: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pairs: PairSet, clean: Outcomes) -> Answering:
        """From what the model answers without a patch."""
        answers, right = answers_of(pairs)[:, 0].tolist(), clean.says("answer", pairs).tolist()
        said = [
            (str(tokenizer.decode([top])), str(tokenizer.decode([answer])))
            for top, answer, known in zip(clean.top.tolist(), answers, right, strict=True)
            if not known
        ]
        return cls(
            pairs=len(pairs),
            right=len(pairs) - len(said),
            preferred=int((clean.logit_diff > 0).sum()),
            spaced=sum(top.strip() == answer.strip() for top, answer in said),
            instead=tuple(Counter(top for top, _ in said).most_common()),
        )


def answered(lens: LensModel, pairs: PairSet) -> Answering:
    """The same by a pass over the base prompts; of longer answers by their first tokens."""
    said = recall(lens, [pair.base for pair in pairs], answers_of(pairs), "answers")
    clean = Outcomes(said.log_probs[:, 0] - said.log_probs[:, 1], said.top)
    return Answering.of(lens.tokenizer, pairs, clean)
