"""The same training step written in other ways: plain hooks, pyvene, and bare matrix products.

Every step is a function without arguments that returns the training loss (the mean logit
difference in nats) and updates its direction; `held_out` of one is the loss on other pairs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.site import Site
from ..engine.buckets import place_of
from ..engine.capture import capture
from ..engine.outcomes import answers_of
from ..engine.replay import Replay
from ..fit.loss import retracted
from ..model.hooks import first_tensor, on_input
from ..model.lens import LensModel
from ..tasks.pairset import PairSet

LR = 0.03


@dataclass(frozen=True)
class Trainer:
    """One way to train a direction: a step on the training pairs, the loss on held-out ones."""

    step: Callable[[], float]
    held_out: Callable[[], float]


def first_direction(width: int) -> Tensor:
    """The unit vector (width, 1) that all start from."""
    start = torch.randn(width, 1, generator=torch.Generator().manual_seed(0))
    return start / start.norm()


def ids_of(lens: LensModel, pairs: PairSet, side: str) -> Tensor:
    """Token ids (n, T) of prompts of equal length."""
    return torch.tensor([getattr(pair, side).ids for pair in pairs], device=lens.device)


def _updating(loss_of: Callable[[Tensor], Tensor], free: Tensor) -> Callable[[], float]:
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


def engine(lens: LensModel, train: PairSet, test: PairSet, site: Site) -> Trainer:
    """Captures, then trains by replay."""
    return engine_from(*(capture(lens, pairs, [site]).at(site) for pairs in (train, test)))


def engine_from(train: Replay, test: Replay) -> Trainer:
    width, device = train.base.shape[1], train.lens.device
    free = first_direction(width).to(device).requires_grad_(True)

    def loss_on(replay: Replay) -> Callable[[Tensor], Tensor]:
        difference = replay.difference.float()

        def loss(basis: Tensor) -> Tensor:
            delta = ((difference @ basis) @ basis.T)[None]
            parts = [piece.logit_diff(delta[:, piece.pairs]).sum() for piece in replay.pieces()]
            return torch.stack(parts).sum() / len(replay.pairs)

        return loss

    return _trainer(loss_on(train), loss_on(test), free)


def _trainer(
    train: Callable[[Tensor], Tensor], test: Callable[[Tensor], Tensor], free: Tensor
) -> Trainer:
    @torch.no_grad()
    def held_out() -> float:
        return float(test(retracted(free)))

    return Trainer(_updating(train, free), held_out)


def hooks(lens: LensModel, train: PairSet, test: PairSet, site: Site) -> Trainer:
    """Source activations are read once; a step is a full pass of the base with a hook, and only
    the last column meets the two rows of the unembedding that the loss needs."""
    place, module = place_of(lens.map, site)
    free = first_direction(lens.map.dim(site)).to(lens.device).requires_grad_(True)

    def loss_on(pairs: PairSet) -> Callable[[Tensor], Tensor]:
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

        return loss

    return _trainer(loss_on(train), loss_on(test), free)


def hooked_logits(lens, ids, place, module, change, answers) -> Tensor:
    """Logits (n, 2) of answer and target after a full pass in which `change` is hooked in."""
    with place(module, change):
        hidden = first_tensor(lens.map.inner(input_ids=ids, use_cache=False))
    rows = lens.map.tail.head.weight[answers]
    return torch.einsum("nd,nmd->nm", hidden[:, -1], rows)


def pyvene(lens: LensModel, train: PairSet, test: PairSet, site: Site) -> Trainer | None:
    """pyvene's `LowRankRotatedSpaceIntervention`, as its tutorials use it; None where pyvene is
    not installed."""
    if importlib.util.find_spec("pyvene") is None:
        return None
    import pyvene as pv  # type: ignore[import-not-found]

    place, module = place_of(lens.map, site)
    name = next(name for name, child in lens.model.named_modules() if child is module)
    where = "input" if place is on_input else "output"
    intervention = pv.LowRankRotatedSpaceIntervention(
        embed_dim=lens.map.dim(site), low_rank_dimension=1
    )
    representation = pv.RepresentationConfig(
        site.layer, f"{name}.{where}", "pos", 1, intervention=intervention
    )
    model = pv.IntervenableModel(pv.IntervenableConfig([representation]), lens.model)
    intervention.rotate_layer.weight = first_direction(lens.map.dim(site))
    optimiser = torch.optim.Adam(intervention.parameters(), lr=LR)

    def loss_on(pairs: PairSet) -> Callable[[], Tensor]:
        base, source = (ids_of(lens, pairs, side) for side in ("base", "source"))
        columns = [[[pair.base.columns[site.label]] for pair in pairs]]
        answers = answers_of(pairs).to(lens.device)
        every = torch.arange(len(pairs))

        def loss() -> Tensor:
            _, patched = model(
                {"input_ids": base},
                [{"input_ids": source}],
                {"sources->base": (columns, columns)},
            )
            logits = patched.logits[:, -1]
            return (logits[every, answers[:, 0]] - logits[every, answers[:, 1]]).mean()

        return loss

    train_loss, test_loss = loss_on(train), loss_on(test)

    def step() -> float:
        optimiser.zero_grad()
        loss = train_loss()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def held_out() -> float:
        return float(test_loss())

    return Trainer(step, held_out)


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
