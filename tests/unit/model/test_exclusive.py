"""One model, many threads, and Ctrl-C at any moment."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import torch
from torch import nn

from helpers_interrupts import interrupted_everywhere
from helpers_models import tiny_model
from subspacelens.core.interrupts import orderly_interrupts
from subspacelens.model.hooks import (
    evaluating,
    exclusive,
    muted,
    on_input,
    on_output,
    replaced_forward,
)
from subspacelens.model.mapping import build_map


def state(model: nn.Module) -> list:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [
        (*(tuple(getattr(m, kind)) for kind in kinds), m.__dict__.get("forward"), m.training)
        for m in model.modules()
    ] + [torch.is_grad_enabled()]


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Dropout()).eval()


def everything(model: nn.Sequential) -> None:
    with (
        exclusive(model),
        torch.no_grad(),
        evaluating(model),
        on_input(model[0], torch.relu),
        on_output(model[1], torch.relu),
        muted(model[0], model[1]),
        replaced_forward([model[1]], lambda _: torch.relu),
        exclusive(model),
    ):
        model(torch.ones(2, 3))


def test_an_interrupt_at_any_moment_leaves_nothing_behind(monkeypatch):
    model = layers()
    before, handler = state(model), signal.getsignal(signal.SIGINT)
    moments = 0
    for interrupted in interrupted_everywhere(lambda: everything(model), monkeypatch):
        moments += 1
        assert interrupted
        assert state(model) == before
        assert signal.getsignal(signal.SIGINT) is handler
        thread = threading.Thread(target=everything, args=(model,))
        thread.start()
        thread.join(5)
        assert not thread.is_alive(), "the lock was left"
    assert moments > 300


def test_an_interrupt_in_the_body_comes_at_once():
    with pytest.raises(KeyboardInterrupt), orderly_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("put off")


def test_waiting_for_another_thread_can_be_interrupted():
    model = layers()
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(model):
            taken.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(5)
    threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), exclusive(model):
        pass
    assert time.monotonic() - start < 5
    done.set()
    holder.join(5)
    with exclusive(model):
        pass


def test_a_handler_of_the_user_is_called_and_stays():
    calls = []

    def mine(signum, _frame) -> None:
        calls.append(signum)

    before = signal.signal(signal.SIGINT, mine)
    try:
        with exclusive(layers()):
            signal.raise_signal(signal.SIGINT)
        assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_threads_take_turns():
    model = layers()
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with exclusive(model), exclusive(model):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 200
    assert max(most) == 1


def test_a_pass_in_another_thread_sees_no_hook_and_no_replaced_forward():
    model = layers()
    x = torch.ones(2, 3)
    clean = model(x)
    answers = []
    for context in (
        on_input(model[0], torch.zeros_like),
        on_output(model[1], torch.zeros_like),
        replaced_forward([model[1]], lambda _: torch.zeros_like),
    ):
        with context:
            thread = threading.Thread(target=lambda: answers.append(model(x)))
            thread.start()
            thread.join(5)
            assert not torch.equal(model(x), clean)
        assert torch.equal(answers.pop(), clean)


def test_every_module_keeps_its_own_mode():
    model = tiny_model("gpt2")
    model.get_submodule("transformer.drop").train()
    before = [module.training for module in model.modules()]
    build_map(model)
    assert [module.training for module in model.modules()] == before
