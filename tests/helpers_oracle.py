"""Patching the slow way: one full forward pass a pair, plain PyTorch hooks, nothing shared."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from helpers_models import VOCABULARY
from subspacelens.core.site import Site
from subspacelens.model.lens import LensModel
from subspacelens.tasks.pairset import Pair, PairSet, Prompt


def random_pairs(lengths: list[tuple[int, int]], seed: int = 0, shift: int = 0) -> PairSet:
    """One pair for each (prompt length, column of label X); sources are `shift` tokens longer."""
    rng = random.Random(seed)

    def prompt(length: int, column: int) -> Prompt:
        ids = tuple(rng.randrange(3, VOCABULARY) for _ in range(length))
        return Prompt("", ids, {"X": column, "END": length - 1})

    def pair(length: int, column: int) -> Pair:
        base, source = prompt(length, column), prompt(length + shift, column + shift)
        answer, target = rng.sample(range(3, VOCABULARY), 2)
        return Pair(base=base, source=source, answer=answer, target=target)

    return PairSet("random", "test", tuple(pair(*each) for each in lengths))


def site_module(lens: LensModel, site: Site):
    """The module to hook for a site and whether its input (else its output) is the site."""
    block = lens.map.blocks[site.layer]
    return {
        "resid_pre": (block.module, True),
        "resid_post": (block.module, False),
        "mlp_act": (block.down_proj and block.down_proj.module, True),
        "mlp_out": (block.mixture or (block.down_proj and block.down_proj.module), False),
        "head_z": (block.out_proj.module, True),
        "attn_out": (block.out_proj.module, False),
        **{name: (heads.linear.module, False) for name, heads in block.projected.items()},
    }[site.stream]


def hooked_logits(lens: LensModel, ids: tuple[int, ...], site: Site, column: int, change) -> Tensor:
    """Logits (vocabulary,) at the last token of a full pass in which `change` is applied to the
    site's activation at `column`."""
    module, is_input = site_module(lens, site)
    columns = lens.map.part(site)

    def changed(x: Tensor) -> Tensor:
        rows = x.reshape(1, len(ids), -1).clone()
        rows[0, column, columns] = change(rows[0, column, columns])
        return rows.reshape(x.shape)

    def pre(_module, args, kwargs):
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": changed(kwargs["hidden_states"])}

    def post(_module, _args, output):
        if isinstance(output, tuple):
            return (changed(output[0]), *output[1:])
        return changed(output)

    if is_input:
        handle = module.register_forward_pre_hook(pre, with_kwargs=True)
    else:
        handle = module.register_forward_hook(post)
    try:
        return lens.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    finally:
        handle.remove()


def activation(lens: LensModel, prompt: Prompt, site: Site) -> Tensor:
    """The site's activation, read by a plain hook."""
    seen = {}

    def read(x: Tensor) -> Tensor:
        seen["x"] = x.detach().clone()  # Falcon goes on to change it in place.
        return x

    with torch.no_grad():
        hooked_logits(lens, prompt.ids, site, prompt.columns[site.label], read)
    return seen["x"]
