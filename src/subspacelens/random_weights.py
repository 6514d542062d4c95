"""Parts that know nothing: a random MLP in a real model, and a whole model of random weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from .capture import Capture
from .errors import SiteError
from .hooks import on_input
from .model import LensModel, wrap
from .modelmap import Linear
from .site import Site


def random_model(lens: LensModel, seed: int = 0) -> LensModel:
    """A copy of the model in which every matrix has normal entries of the same spread as before."""
    model = deepcopy(lens.model)
    _randomise(model, seed)
    return wrap(model, lens.tokenizer, f"{lens.id}, random weights {seed}")


def random_mlp(
    lens: LensModel, captured: Capture, site: Site, seed: int = 0
) -> tuple[LensModel, Capture]:
    """What a randomly weighted copy of the MLP at `site` would have computed from the same inputs,
    as a model and a capture for fits and replays at `site` (arXiv 2311.17030, appendix B.5).

    The model itself runs unchanged. Only where its map says what the site writes, it says what the
    random copy would, so that a patch adds to the real residual stream the difference that it makes
    in the random MLP's output. `captured` must hold the block's `resid_mid` too. Raises `SiteError`
    where the MLP is not a module of its own that reads `resid_mid`.
    """
    block = lens.map.block(site)
    down = block.down_proj
    assert down is not None
    parent, _, name = down.name.rpartition(".")
    mlp = lens.model.get_submodule(parent)
    if block.mid_reader is None or mlp is block.module or block.entries[site.stream] != "post":
        raise SiteError(f"site {site}: the MLP cannot be replaced by a random one here")
    norm = None if block.mid_reader in list(mlp.modules()) else block.mid_reader
    mlp = deepcopy(mlp)
    _randomise(mlp, seed)
    linear = Linear(down.name, mlp.get_submodule(name), down.transposed)
    middle = replace(site, stream="resid_mid")

    def hidden(x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with torch.no_grad(), on_input(linear.module, seen.append):
            mlp(x if norm is None else norm(x))
        return seen[0]

    blocks = list(lens.map.blocks)
    blocks[site.layer] = replace(block, down_proj=linear)
    told = replace(lens, map=replace(lens.map, blocks=tuple(blocks)))
    activations = {
        role: {site: hidden(getattr(captured, role)[middle])} for role in ("base", "source")
    }
    return told, replace(captured, sites=(site,), **activations)


def _randomise(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.to(parameter) * parameter.std())
