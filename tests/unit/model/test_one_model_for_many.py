"""Engine, certificates and maps under Ctrl-C at any moment, and from several threads at once."""

from __future__ import annotations

import threading

import pytest
import torch

from helpers_interrupts import interrupted_everywhere
from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.recall import last_hidden
from subspacelens.model.lens import LensModel

SITE = Site(1, "mlp_act", "X")
PAIRS = random_pairs([(9, 4), (12, 7)])
PROMPTS = [pair.base for pair in PAIRS]


@pytest.fixture
def lens() -> LensModel:
    return tiny_lens("llama")


def state(lens: LensModel) -> list:
    modules = [
        (tuple(m._forward_hooks), tuple(m._forward_pre_hooks), m.__dict__.get("forward"))
        for m in lens.model.modules()
    ]
    attention = lens.model.config._attn_implementation_internal
    return [*modules, attention, torch.is_grad_enabled(), lens.model.training]


def operations(lens: LensModel) -> dict:
    replay = capture(lens, PAIRS, [SITE]).at(SITE)
    replay.delta_outcomes(replay.difference)
    return {
        "capture": lambda: capture(lens, PAIRS, [SITE]).base[SITE],
        "replay": lambda: replay.delta_outcomes(replay.difference).logit_diff,
        "gradients": replay.gradients,
        "recall": lambda: last_hidden(lens, PROMPTS),
    }


# Python itself drops an interrupt that comes while it clears a generator away, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["capture", "replay", "gradients", "recall"])
def test_an_interrupt_at_any_moment_leaves_the_model_as_it_was(lens, monkeypatch, name):
    operation = operations(lens)[name]
    expected, before = operation(), state(lens)
    moments = 0
    for _ in interrupted_everywhere(operation, monkeypatch, every=61):
        moments += 1
        assert state(lens) == before
    assert moments > 20
    assert torch.equal(operation(), expected)


def test_threads_that_patch_and_threads_that_only_run_get_their_own_answers(lens):
    ids = torch.tensor([PROMPTS[0].ids])
    work = operations(lens) | {"plain": lambda: lens.model(input_ids=ids, use_cache=False).logits}
    expected, before = {name: run() for name, run in work.items()}, state(lens)
    wrong: list[str] = []

    def repeat(name: str) -> None:
        torch.manual_seed(0)
        for _ in range(15):
            answer = work[name]()
            if not torch.allclose(answer, expected[name], rtol=1e-4, atol=1e-6):
                wrong.append(name)

    threads = [threading.Thread(target=repeat, args=(name,)) for name in work for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert state(lens) == before
