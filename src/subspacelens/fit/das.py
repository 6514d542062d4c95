"""Distributed alignment search (Geiger et al. 2023), as a thin basis with a QR retraction."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.progress import track
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.replay import Piece, Replay
from ..model.lens import LensModel
from .registry import Count, Rate, Seed, register
from .subspace import Subspace, made_by

Loss = Literal["logit-difference", "cross-entropy"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


@register("das", gradients=lambda pairs, options: options["steps"] * min(options["batch"], pairs))
def das(
    lens: LensModel,
    captured: Capture,
    site: Site,
    *,
    dim: Count = 1,
    seed: Seed = 0,
    steps: Count = 120,
    batch: Count = 64,
    lr: Rate = 0.03,
    loss: Loss = "logit-difference",
) -> Subspace:
    """The `dim`-dimensional subspace whose patch moves the model most towards the source's answer.

    Distributed alignment search (Geiger et al. 2023, arXiv 2303.02536). What is lowered is `loss`:
    the mean of logit(answer) - logit(target) in nats, or the cross-entropy of the target over the
    whole vocabulary, as in arXiv 2311.17030. Adam takes `steps` steps with a rate that falls from
    `lr` to a tenth, through batches of `batch` pairs that are drawn once and come in turn, the last
    with what is left. After each step the basis (d, dim) is made orthonormal again by QR. The same
    `seed` gives the same basis; `fit` of the subspace holds all settings, the first loss, and the
    mean of the last ten.

    Raises `SubspaceError` for settings that are out of range, and what every fit raises (`Fit`).

    >>> subspace = das(lens, captures.train, Site.parse("L18.mlp_act@S2"), dim=2, seed=1)
    >>> subspace.fit["last_loss"]
    """
    width = lens.map.dim(site)
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(width, dim, generator=generator).div_(width**0.5).requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, steps)
    whole = captured.at(site, lens)
    total = len(whole.pairs)
    order = torch.randperm(total, generator=generator)
    batches = [whole.subset(chosen) for chosen in order.split(batch)]
    losses: list[float] = []
    for step in track(range(steps), f"DAS at {site}"):
        replay = batches[step % len(batches)]
        difference = replay.difference
        free.grad = None
        value = 0.0
        for piece in replay.pieces():
            basis = retracted(free).to(difference)
            moved = difference[piece.pairs.to(difference.device)]
            delta = ((moved @ basis) @ basis.T)[None]
            part = _loss(loss, replay, piece, delta).sum() / len(replay.pairs)
            part.backward(inputs=[free])
            value += float(part.detach())
        losses.append(value)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            free.copy_(retracted(free))
    record = dict(
        method="das", loss=loss, seed=seed, steps=steps, batch=min(batch, total), lr=lr,
        first_loss=losses[0], last_loss=sum(losses[-10:]) / len(losses[-10:]),
    )  # fmt: skip
    return made_by(lens, site, retracted(free), whole.pairs.sha256, record)


def _loss(kind: Loss, replay: Replay, piece: Piece, delta: Tensor) -> Tensor:
    if kind == "logit-difference":
        return piece.logit_diff(delta)
    logits = piece.logits(delta)[0].float()
    targets = replay.answers[piece.pairs, 1].to(logits.device)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def retracted(free: Tensor) -> Tensor:
    """An orthonormal basis of the span of `free` (d, k), differentiable."""
    if free.shape[1] == 1:
        return free / free.norm()
    q, r = torch.linalg.qr(free)
    return q * r.diagonal().sign()
