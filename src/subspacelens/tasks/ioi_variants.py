"""IOI further and further away from its templates: other prefixes, a third name, natural text."""

from __future__ import annotations

import json
import random
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from .ioi import ioi_data, known_words, pairs_of
from .pairset import PairSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PREFIX = "Then, "


def ioi_variants(
    tokenizer: PreTrainedTokenizerBase, *, size: int = 64, seed: int = 0
) -> dict[str, PairSet]:
    """`size` IOI pairs of each kind, with the names, objects and places of the test split.

    The templates of `ioi` after a shorter and a longer prefix than its own "Then, "; templates with
    a name that is neither IO nor S; sentences of ordinary prose in which a name comes back. Raises
    `TaskError` as `ioi` does.
    """
    tokens, words = known_words(tokenizer)
    return {
        name: PairSet(
            "ioi",
            name,
            pairs_of(
                tokenizer, name, tokens, words.half(1), templates, size,
                random.Random(f"ioi/{name}/{seed}"),
            ),
        )
        for name, templates in _templates().items()
    }  # fmt: skip


@cache
def _templates() -> dict[str, dict[str, str]]:
    raw = json.loads(
        files("subspacelens.tasks").joinpath("data/ioi_variants.json").read_text(encoding="utf-8")
    )
    own = ioi_data().train.items()
    prefixed = {
        name: {key: prefix + text.removeprefix(_PREFIX) for key, text in own}
        for name, prefix in raw.pop("prefixes").items()
    }
    return prefixed | raw
