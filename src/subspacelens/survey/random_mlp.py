"""Random weights: does DAS find a subspace in an MLP that knows nothing?

The MLP of a block runs beside the real one with random weights. Its hidden activation for base and
source differs, because its input does. DAS fits a direction of that activation; the model gets only
what the random MLP's output changes by when the direction is patched (arXiv 2311.17030, appendix).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..audit.effects import Scorer
from ..capture import Capture, capture
from ..errors import SiteError
from ..fit.das import retracted
from ..geometry import Split
from ..hooks import on_input
from ..model import LensModel
from ..progress import track
from ..replay import Replay
from ..results import Estimate, _Record
from ..site import Site
from ..tasks.pairset import Task

Weights = Literal["gaussian", "shuffled"]
SEEDS = 10
STEPS = 40
LR = 0.03


class RandomMLP(_Record):
    """One kind of random weights at one site, over `seeds` draws: FLDD on test pairs of the fitted
    direction, of the whole random activation and of the direction's connected part, mean and 95 %
    interval over draws; `null_share`: how much of the direction's squared norm is in the kernel.
    `real_whole`: FLDD of patching the real MLP's whole activation."""

    site: str
    weights: Weights
    seeds: int
    direction: Estimate
    whole: Estimate
    connected: Estimate
    null_share: Estimate
    real_whole: float


def random_mlp(
    lens: LensModel,
    task: Task,
    site: Site,
    *,
    kinds: Sequence[Weights] = ("gaussian", "shuffled"),
    seeds: int = SEEDS,
    steps: int = STEPS,
    pairs: int = 32,
    shifted: bool = False,
    memory: int | None = None,
) -> list[RandomMLP]:
    """`site` is an `mlp_act` site. `gaussian`: entries are drawn from N(0, σ), σ the standard
    deviation of the real matrix; `shuffled`: the real entries in random order.

    Raises `SiteError` for another stream, or where the MLP cannot be run by itself.
    """
    if site.stream != "mlp_act":
        raise SiteError(f"random MLPs are for mlp_act sites, not {site}")
    if lens.map.writer(site) is None:
        raise SiteError(f"site {site} writes through a norm, so its kernel is not W's")
    mlp = _Sandbox(lens, site)
    after = Site(site.layer, "resid_post", site.label)
    train, test = (
        capture(lens, part[:pairs], [site, mlp.input_site, after], shifted=shifted)
        for part in (task.train, task.test)
    )
    replays = [Replay(lens, part, after, memory=memory) for part in (train, test)]
    scorer = Scorer.of(test)

    def fldd(delta: Tensor) -> float:
        drop = scorer.drop(replays[1].outcomes(delta.to(test.base[after])))
        return float(drop.sum() / scorer.clean.sum())

    real = test.difference(site) @ lens.map.writer(site).T.to(test.base[site])  # type: ignore[union-attr]
    real_whole = fldd(real)
    found = []
    for kind in kinds:
        rows = []
        for seed in track(range(seeds), f"random MLPs at {site} ({kind})"):
            weight, (of_train, of_test) = mlp.randomised(kind, seed, (train, test))
            v = _fit(replays[0], of_train, weight, steps, seed)
            row = Split.of(weight).row(v[:, None])[:, 0].to(v)
            part = float(row @ row)
            rows.append(
                (
                    fldd(_written(of_test, v, weight)),
                    fldd(of_test @ weight.T),
                    fldd(_written(of_test, row / row.norm(), weight)),
                    1 - part,
                )
            )
        columns = [_interval(values) for values in zip(*rows, strict=True)]
        found.append(
            RandomMLP(
                site=str(site), weights=kind, seeds=seeds, direction=columns[0], whole=columns[1],
                connected=columns[2], null_share=columns[3], real_whole=real_whole,
            )
        )  # fmt: skip
    return found


def _written(change: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """What the output changes by: (vᵀΔ) W v, (n, d_model)."""
    return (change @ v)[:, None] * (weight @ v)


def _fit(replay: Replay, change: Tensor, weight: Tensor, steps: int, seed: int) -> Tensor:
    """A unit direction (width,) by DAS on the random activation's changes (n, width)."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(change.shape[1], 1, generator=generator).div_(change.shape[1] ** 0.5)
    free.requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, steps)
    for _ in range(steps):
        free.grad = None
        for unit in replay.units():
            v = retracted(free)[:, 0].to(change)
            delta = _written(change[unit.pairs.to(change.device)], v, weight)[None]
            loss = replay.logit_diff(unit, delta).sum() / len(change)
            loss.backward(inputs=[free])
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            free.copy_(retracted(free))
    return retracted(free).detach()[:, 0].to(change)


class _Sandbox:
    """A copy of one block's MLP that runs by itself."""

    def __init__(self, lens: LensModel, site: Site) -> None:
        block = lens.map.block(site)
        readers = [reader for reader in block.readers if not reader.attention]
        assert block.down_proj is not None
        parent = block.down_proj.name.rpartition(".")[0]
        inside = dict(lens.model.named_modules())
        self.norm = readers[0].norm if readers else None
        module = inside.get(parent)
        alone = module is not None and module is not block.module and bool(readers)
        if not alone or any(not r.linear.name.startswith(f"{parent}.") for r in readers):
            raise SiteError(f"site {site}: the MLP of this architecture is no module of its own")
        stream = "resid_mid" if readers[0].mid else "resid_pre"
        self.input_site = Site(site.layer, stream, site.label)
        lens.map.block(self.input_site)
        self.down = block.down_proj
        self.down_name = block.down_proj.name.removeprefix(f"{parent}.")
        self.module = module

    def randomised(self, kind: Weights, seed: int, captures: Sequence[Capture]):
        """The random down-projection (d_model, width) and the changes of the random hidden
        activation between base and source, (n, width) each."""
        assert self.module is not None
        module = copy.deepcopy(self.module)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(_random_like(parameter, kind, generator))
            down = module.get_submodule(self.down_name)
            weight = down.get_parameter("weight").detach()
            weight = weight.T if self.down.transposed else weight
            changes = [
                self._hidden(module, down, part.source[self.input_site])
                - self._hidden(module, down, part.base[self.input_site])
                for part in captures
            ]
        return weight.float(), changes

    def _hidden(self, module: nn.Module, down: nn.Module, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with on_input(down, lambda h: seen.append(h.reshape(-1, h.shape[-1]))):
            module((x if self.norm is None else self.norm(x))[:, None])
        return seen[0].float()


def _random_like(parameter: Tensor, kind: Weights, generator: torch.Generator) -> Tensor:
    if kind == "shuffled":
        order = torch.randperm(parameter.numel(), generator=generator)
        return parameter.flatten()[order.to(parameter.device)].view_as(parameter)
    noise = torch.randn(parameter.shape, generator=generator)
    return noise.to(parameter) * parameter.std()


def _interval(values: Sequence[float]) -> Estimate:
    """Mean and its 95 % interval by Student's t over draws."""
    from scipy import stats

    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return Estimate(value=mean, low=mean, high=mean)
    low, high = stats.t.interval(0.95, len(array) - 1, loc=mean, scale=stats.sem(array))
    return Estimate(value=mean, low=float(low), high=float(high))
