"""Reading and writing at one column a row, and passes that end early."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subspacelens.core.errors import ModelError
from subspacelens.model.hooks import (
    at_columns,
    first_call,
    on_input,
    on_output,
    stopping_after,
)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()


X = torch.arange(24, dtype=torch.float64).view(2, 3, 4).sin()
COLUMNS = torch.tensor([2, 0])


def test_a_write_at_one_column_a_row_is_that_write_by_hand(model):
    delta = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    with at_columns(on_output, model[0], COLUMNS, lambda x: x + delta, part=slice(1, 3)):
        written = model(X)
    by_hand = model[0](X).clone()
    by_hand[0, 2, 1:3] += delta[0]
    by_hand[1, 0, 1:3] += delta[1]
    expected = model[1](by_hand)
    torch.testing.assert_close(written, expected)
    (ours,) = torch.autograd.grad(written.square().sum(), delta, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.square().sum(), delta)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("flat", [False, True])
def test_what_is_read_is_what_is_there_and_nothing_is_written(model, flat):
    read: list[torch.Tensor] = []
    x = X.flatten(0, 1) if flat else X
    with at_columns(on_input, model[1], COLUMNS, read.append):
        y = model(x)
    hidden = model[0](X)
    assert torch.equal(read[0], torch.stack([hidden[0, 2], hidden[1, 0]]))
    assert torch.equal(y, model(x))


def test_only_the_first_call_is_changed(model):
    with on_output(model[1], first_call(torch.zeros_like)):
        first, second = model(X), model(X)
    assert not first.any()
    assert torch.equal(second, model(X))


def test_a_pass_is_stopped_after_a_module_and_gives_its_output(model):
    ran: list[torch.Tensor] = []
    with stopping_after(model[0]) as ending, on_output(model[1], ran.append):
        model(X)
    assert torch.equal(ending.output, model[0](X))
    assert not ran


def test_a_pass_inside_another_stops_itself_alone(model):
    with stopping_after(model[1]) as outer:
        with stopping_after(model[0]) as inner:
            model(X)
        hidden = inner.output
        model(X)
    assert torch.equal(outer.output, model[1](hidden))


def test_a_pass_that_never_came_there_is_an_error(model):
    with stopping_after(nn.Identity()) as ending:
        model(X)
    with pytest.raises(ModelError, match="ended before"):
        _ = ending.output


def test_other_errors_go_through(model):
    with pytest.raises(ZeroDivisionError), stopping_after(model[1]):
        1 / 0  # noqa: B018
    assert not model[1]._forward_hooks
