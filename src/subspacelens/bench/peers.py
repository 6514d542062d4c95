"""The same training step written in other ways: by replay, plain hooks and bare matrix products.

A step is a function without arguments that returns the training loss (the mean logit difference in
nats) and updates its direction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.site import Site
from ..engine.buckets import place_of
from ..engine.outcomes import answers_of
from ..engine.replay import Replay
from ..fit.loss import retracted
from ..model.hooks import first_tensor
from ..model.lens import LensModel
from ..tasks.pairset import PairSet

LR = 0.03


def first_direction(width: int) -> Tensor:
    """The unit vector (width, 1) that all start from."""
    start = torch.randn(width, 1, generator=torch.Generator().manual_seed(0))
    return start / start.norm()


def ids_of(lens: LensModel, pairs: PairSet, side: str) -> Tensor:
    """Token ids (n, T) of prompts of equal length."""
    return torch.tensor([getattr(pair, side).ids for pair in pairs], device=lens.device)


def _updating(
    lens: LensModel, site: Site, loss_of: Callable[[Tensor], Tensor]
) -> Callable[[], float]:
    free = first_direction(lens.map.dim(site)).to(lens.device).requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=LR)

    def step() -> float:
        optimiser.zero_grad()
        loss = loss_of(retracted(free))
        loss.backward(inputs=[free])
        optimiser.step()
        with torch.no_grad():
            free.copy_(retracted(free))
        return float(loss.detach())

    return step


def engine(replay: Replay) -> Callable[[], float]:
    """A step by replay."""
    difference = replay.difference.float()

    def loss(basis: Tensor) -> Tensor:
        delta = ((difference @ basis) @ basis.T)[None]
        parts = [piece.logit_diff(delta[:, piece.pairs]).sum() for piece in replay.pieces()]
        return torch.stack(parts).sum() / len(replay.pairs)

    return _updating(replay.lens, replay.site, loss)


def hooks(lens: LensModel, pairs: PairSet, site: Site) -> Callable[[], float]:
    """Source activations are read once; a step is a full pass of the base with a hook, and only
    the last column meets the two rows of the unembedding that the loss needs."""
    place, module = place_of(lens.map, site)
    base, source = (ids_of(lens, pairs, side) for side in ("base", "source"))
    column = pairs[0].base.columns[site.label]
    answers = answers_of(pairs).to(lens.device)
    activations: list[Tensor] = []
    with torch.no_grad(), place(module, lambda x: activations.append(x[:, column].clone())):
        lens.map.inner(input_ids=source, use_cache=False)
    theirs = activations[0]

    def loss(basis: Tensor) -> Tensor:
        def patch(x: Tensor) -> Tensor:
            ours = x[:, column]
            patched = x.clone()
            patched[:, column] = ours + ((theirs - ours) @ basis) @ basis.T
            return patched

        logits = hooked_logits(lens, base, place, module, patch, answers)
        return (logits[:, 0] - logits[:, 1]).mean()

    return _updating(lens, site, loss)


def hooked_logits(lens, ids, place, module, change, answers) -> Tensor:
    """Logits (n, 2) of answer and target after a full pass in which `change` is hooked in."""
    with place(module, change):
        hidden = first_tensor(lens.map.inner(input_ids=ids, use_cache=False))
    rows = lens.map.tail.head.weight[answers]
    return torch.einsum("nd,nmd->nm", hidden[:, -1], rows)


def floor(replay: Replay) -> Callable[[], None]:
    """The matrix products of the suffix alone, forward (x Wᵀ) and backward (g W), for every linear
    map of the replayed blocks on every suffix column."""
    start = replay.entry[1]
    weights = [
        child.weight.detach()
        for block in replay.lens.map.blocks[start:]
        for child in block.module.modules()
        if isinstance(child, nn.Linear)
    ]
    rows = sum(len(bucket.pairs) * bucket.suffix for bucket in replay.buckets)
    inputs = {w.shape[1]: w.new_ones(rows, w.shape[1]) for w in weights}
    grads = {w.shape[0]: w.new_ones(rows, w.shape[0]) for w in weights}

    @torch.no_grad()
    def products() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        for weight in reversed(weights):
            torch.mm(grads[weight.shape[0]], weight)

    return products
