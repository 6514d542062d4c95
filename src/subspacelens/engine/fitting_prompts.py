"""Prompts that a model cannot read are refused before it runs."""

from __future__ import annotations

from ..core.errors import TaskError
from ..model.lens import LensModel
from ..tasks.pairset import PairSet


def check_fits(lens: LensModel, pairs: PairSet) -> None:
    """Raises `TaskError`, naming the pair by its file and line where it has them, for a prompt that
    is longer than the model's context, and for token ids that the model does not know."""
    context, known = context_of(lens), lens.model.get_input_embeddings().get_parameter("weight")
    vocabulary = min(len(known), len(lens.map.tail.head.weight))
    for number, pair in enumerate(pairs.pairs):
        for role, prompt in (("base", pair.base), ("source", pair.source)):
            if context is not None and len(prompt.ids) > context:
                raise TaskError(
                    f"{pairs.where(number)}: the {role} has {len(prompt.ids)} tokens, and the "
                    f"model's context is {context}: shorten it"
                )
        more = max(map(len, pair.accepted.passes))
        if context is not None and len(pair.base.ids) + more > context:
            raise TaskError(
                f"{pairs.where(number)}: base and answers have {len(pair.base.ids) + more} tokens, "
                f"and the model's context is {context}: shorten them"
            )
        answers = (token for tokens in pair.accepted.all for token in tokens)
        predicted = (token for tokens in pair.predictions.values() for token in tokens)
        largest = max(*pair.base.ids, *pair.source.ids, *answers, *predicted)
        if largest >= vocabulary:
            raise TaskError(
                f"{pairs.where(number)}: token id {largest} is beyond the model's vocabulary of "
                f"{vocabulary}: use the model's own tokenizer"
            )


def context_of(lens: LensModel) -> int | None:
    """How many columns the model was made for, or None where its configuration does not say."""
    config = lens.model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len"):
        if isinstance(size := getattr(config, name, None), int):
            return size
    return None
