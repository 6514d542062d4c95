"""A tiny random model that does a task: its last token says which of two tokens comes next."""

from __future__ import annotations

from dataclasses import replace

from helpers_models import lens_of, tiny_model
from helpers_oracle import random_pairs
from subspacelens.model.lens import LensModel
from subspacelens.tasks import Task
from subspacelens.tasks.pairset import PairSet, Prompt

ANSWERS, SAYS = (5, 6), (3, 4)
STRENGTH = 6.0


def knowing_lens() -> LensModel:
    """Tokens `SAYS` are embedded along the direction that tells `ANSWERS` apart."""
    model = tiny_model("llama")
    rows = model.get_output_embeddings().weight
    towards = rows[ANSWERS[1]] - rows[ANSWERS[0]]
    towards = STRENGTH * towards / towards.norm()
    embedding = model.get_input_embeddings().weight
    embedding[SAYS[0]] -= towards
    embedding[SAYS[1]] += towards
    return lens_of(model, "knowing")


def knowing_task(train: int = 40, test: int = 32) -> Task:
    """z is which of `SAYS` comes last, and which of `ANSWERS` is right."""

    def ending(prompt: Prompt, z: int) -> Prompt:
        return replace(prompt, ids=(*prompt.ids[:-1], SAYS[z]))

    def split(name: str, count: int, seed: int) -> PairSet:
        pairs = []
        for i, pair in enumerate(random_pairs([(9, 4)] * count, seed)):
            z = i % 2
            pairs.append(
                replace(
                    pair, base=ending(pair.base, z), source=ending(pair.base, 1 - z), z=(z, 1 - z),
                    answer=ANSWERS[z], target=ANSWERS[1 - z],
                )
            )  # fmt: skip
        return PairSet("random", name, tuple(pairs))

    return Task("random", split("train", train, 1), split("test", test, 2))
