"""Whatever tells that a model was changed, without reading a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn


def state_of(model: nn.Module) -> Iterator[tuple[str, tuple]]:
    """For every module and parameter its name and whatever tells that it was changed: hooks,
    replaced forwards, the version and place of the data. No weight is read."""
    for name, module in model.named_modules():
        kinds: tuple[Mapping, ...] = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        forward = module.__dict__.get("forward")
        yield name or "the model", (*map(tuple, kinds), forward and id(forward), module.training)
    for name, parameter in model.named_parameters():
        version = -1 if parameter.is_inference() else parameter._version
        yield name, (version, parameter.data_ptr(), parameter.requires_grad, parameter.grad is None)
