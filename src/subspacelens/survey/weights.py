"""What an MLP's weights can hide: singular values, ranks and kernels (arXiv 2311.17030 §7)."""

from __future__ import annotations

import torch
from pydantic import ConfigDict
from torch import Tensor

from ..core.errors import SiteError
from ..core.progress import track
from ..core.records import Record
from ..model.lens import LensModel
from ..model.mapping.values import Block

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
RELATIVE = 1e-6
"""Singular values below this share of the largest count as zero."""


class MatrixFacts(Record):
    """One projection. `kernel`: inputs minus rank, the directions that it does not read.
    `singular_values`: their `QUANTILES`."""

    name: str
    outputs: int
    inputs: int
    rank: int
    kernel: int
    singular_values: list[float]

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class LayerWeights(Record):
    """The down-projection and the projections that read the residual stream into one MLP."""

    layer: int
    down: MatrixFacts
    up: list[MatrixFacts]


def weight_facts(lens: LensModel) -> list[LayerWeights]:
    """Singular values, rank and kernel of every MLP's projections, in float64.

    Raises `SiteError` if no block has a down-projection that can be used.

    >>> [(row.layer, row.down.rank, row.down.kernel) for row in weight_facts(lens)]
    """
    facts = []
    for layer, block in enumerate(track(lens.map.blocks, "singular values")):
        if "mlp_act" in block.missing or block.down_proj is None:
            continue
        ups = [_facts(name, weight) for name, weight in up_projections(block)]
        down = _facts(_own(block.down_proj.name), block.down_proj.weight)
        facts.append(LayerWeights(layer=layer, down=down, up=ups))
    if not facts:
        raise SiteError(f"no MLP to look at: {lens.map.blocks[0].missing.get('mlp_act', '')}")
    return facts


def up_projections(block: Block) -> list[tuple[str, Tensor]]:
    """Name and weight of the linear maps by which the MLP reads the residual stream."""
    return [
        (_own(reader.linear.name), reader.linear.weight)
        for reader in block.readers
        if not reader.attention
    ]


def _own(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _facts(name: str, weight: Tensor) -> MatrixFacts:
    values = torch.linalg.svdvals(weight.detach().cpu().double())
    rank = int((values > RELATIVE * values[0]).sum())
    return MatrixFacts(
        name=name,
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        rank=rank,
        kernel=weight.shape[1] - rank,
        singular_values=values.quantile(values.new_tensor(QUANTILES)).tolist(),
    )
