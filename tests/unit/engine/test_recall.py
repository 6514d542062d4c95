"""Pairs that the model itself answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens.core.errors import TaskError
from subspacelens.engine.recall import only_correct
from subspacelens.tasks import Task
from subspacelens.tasks.pairset import PairSet


def test_only_pairs_that_the_model_answers_are_kept():
    lens = tiny_lens("llama")

    def says(ids: tuple[int, ...]) -> int:
        with torch.no_grad():
            return int(lens.model(torch.tensor([ids])).logits[0, -1].argmax())

    def split(name: str, right: set[int]) -> PairSet:
        pairs = [
            replace(p, answer=says(p.base.ids) if i in right else (says(p.base.ids) + 1) % 20)
            for i, p in enumerate(random_pairs([(9, 4), (12, 7), (9, 5)], seed=len(right)))
        ]
        return PairSet("t", name, tuple(pairs))

    train, test = split("train", {0, 2}), split("test", {1})
    kept = only_correct(lens, Task("t", train, test, split("held_out", set())))
    assert kept.train.pairs == (train[0], train[2]) and kept.test.pairs == (test[1],)
    assert kept.held_out is None and kept.train.split == "train"
    with pytest.raises(TaskError, match="the right answer to no test pair"):
        only_correct(lens, Task("t", train, split("test", set())))
