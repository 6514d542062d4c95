"""Parts that know nothing: a random MLP in a real model, and a whole model of random weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import SiteError
from ..core.site import Site
from ..model.hooks import on_input
from ..model.lens import LensModel, wrap
from ..model.mapping.values import Linear, Reader
from ..model.mapping.ways import After
from .capture import Capture

Weights = Literal["gaussian", "shuffled"]
"""`gaussian`: entries from N(0, σ), σ the standard deviation of the real matrix; `shuffled`: the
real entries in random order."""


def random_model(lens: LensModel, seed: int = 0) -> LensModel:
    """A copy of the model in which every matrix has normal entries of the same spread as before."""
    model = deepcopy(lens.model)
    _randomise(model, seed, "gaussian")
    return wrap(model, lens.tokenizer, f"{lens.id}, random weights {seed}")


def mlp_input(lens: LensModel, site: Site) -> Site:
    """The residual stream that the MLP at `site` reads. Raises `SiteError` where that MLP is no
    module of its own."""
    reader = _reader(lens, site)
    return replace(site, stream="resid_mid" if reader.mid else "resid_pre", head=None)


def random_mlp(
    lens: LensModel, captured: Capture, site: Site, seed: int = 0, kind: Weights = "gaussian"
) -> tuple[LensModel, Capture]:
    """What a randomly weighted copy of the MLP at `site` would have computed from the same inputs,
    as a model and a capture for fits and replays at `site` (arXiv 2311.17030, appendix B.5).

    The model itself runs unchanged. Only where its map says what the site writes, it says what the
    random copy would, so that a patch adds to the real residual stream the difference that it makes
    in the random MLP's output. `captured` must hold `mlp_input(lens, site)` too. Raises `SiteError`
    for another stream than `mlp_act`, and where the MLP cannot be run by itself.
    """
    reader = _reader(lens, site)
    block, middle = lens.map.block(site), mlp_input(lens, site)
    down = block.down
    parent, _, name = down.name.rpartition(".")
    mlp = lens.model.get_submodule(parent)
    norm = None if reader.norm in list(mlp.modules()) else reader.norm
    mlp = deepcopy(mlp)
    _randomise(mlp, seed, kind)
    linear = Linear(down.name, mlp.get_submodule(name), down.transposed)

    def hidden(x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with torch.no_grad(), on_input(linear.module, seen.append):
            mlp((x if norm is None else norm(x))[:, None])
        return seen[0].reshape(len(x), -1)

    blocks = list(lens.map.blocks)
    blocks[site.layer] = replace(block, down_proj=linear)
    told = replace(lens, map=replace(lens.map, blocks=tuple(blocks)))
    activations = {
        role: {site: hidden(getattr(captured, role)[middle])} for role in ("base", "source")
    }
    return told, replace(captured, lens=told, sites=(site,), **activations)


def _reader(lens: LensModel, site: Site) -> Reader:
    """What of the MLP at `site` reads the residual stream."""
    block = lens.map.block(site)
    if site.stream != "mlp_act" or block.down_proj is None:
        raise SiteError(f"random MLPs are for mlp_act sites, not {site}")
    parent = block.down_proj.name.rpartition(".")[0]
    inside = f"{parent}."
    readers = [r for r in block.readers if not r.attention and r.linear.name.startswith(inside)]
    alone = lens.model.get_submodule(parent) is not block.module
    if not readers or not alone or not isinstance(block.entries[site.stream], After):
        raise SiteError(f"site {site}: the MLP cannot be replaced by a random one here")
    return readers[0]


def _randomise(module: nn.Module, seed: int, kind: Weights) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                continue
            if kind == "shuffled":
                order = torch.randperm(parameter.numel(), generator=generator)
                drawn = parameter.flatten()[order.to(parameter.device)].view_as(parameter)
            else:
                noise = torch.randn(parameter.shape, generator=generator)
                drawn = noise.to(parameter) * parameter.std()
            parameter.copy_(drawn)
