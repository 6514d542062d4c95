"""The distilled example of arXiv 2311.17030 §3: three hidden units, one input, one output.

h = (1, 0, 1)ᵀ x and y = (0, 2, 1) h = x. Unit 1 varies and is not read: disconnected. Unit 2 is
read and never varies: dormant. Unit 3 carries the signal. Patching along (e1 + e2)/√2 makes the
output the source's, though nothing that the network uses lies on that line.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import torch
from torch import Tensor

from ..audit.record import Verdict
from ..audit.verdict import Evidence, decide
from ..core.geometry import Split
from ..core.records import Estimate
from ..engine.patches import Full, Patch, ReadWrite, SubspacePatch

READ_IN = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
READ_OUT = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
E1, E2, E3 = torch.eye(3, dtype=torch.float64)[:, :, None]

DIRECTIONS = {
    "e1 (disconnected)": E1,
    "e2 (dormant)": E2,
    "e3 (faithful)": E3,
    "(e1 + e2)/√2 (illusory)": (E1 + E2) / 2**0.5,
}
PATCHES = ("full", "unit row", "row, not normalised", "null", "read row", "read null")


def hidden(x: Tensor) -> Tensor:
    """Inputs (n,) to hidden activations (n, 3)."""
    return x[:, None].double() @ READ_IN.T


def output(h: Tensor) -> Tensor:
    """Hidden activations (n, 3) to outputs (n,)."""
    return (h @ READ_OUT.T)[:, 0]


def illusory(degrees: float) -> Tensor:
    """cos θ e1 + sin θ e2, (3, 1)."""
    theta = degrees * pi / 180
    return cos(theta) * E1 + sin(theta) * E2


def effect(patch: Patch, base: Tensor, source: Tensor) -> float:
    """Change of the output as a share of the change that taking the source would make, by least
    squares over pairs of inputs (n,): 1 means that the output becomes the source's."""
    before = hidden(base)
    after = before + patch.delta(before, hidden(source))
    whole = output(hidden(source)) - output(before)
    return float((output(after) - output(before)) @ whole / (whole @ whole))


def patches_of(basis: Tensor) -> dict[str, Patch | None]:
    """The patches of the table for a direction or span (3, k); None where a part is zero."""
    split = Split.of(READ_OUT)
    row, null = split.row(basis), split.null(basis)

    def unit(part: Tensor) -> Tensor:
        return torch.linalg.qr(part).Q

    has_row, has_null = float(row.norm()) > 1e-9, float(null.norm()) > 1e-9
    one = basis.shape[1] == 1
    return {
        "full": SubspacePatch(basis),
        "unit row": SubspacePatch(unit(row)) if has_row and one else None,
        "row, not normalised": ReadWrite(row, row) if one else None,
        "null": SubspacePatch(unit(null)) if has_null and one else ReadWrite(null, null),
        "read row": ReadWrite(row, basis),
        "read null": ReadWrite(null, basis),
    }


@dataclass(frozen=True)
class ToyResult:
    """`table[direction][patch]` effects; `sweep`: (θ in degrees, effect) of cos θ e1 + sin θ e2;
    `span`: effect of patching the whole span of e1 and e2; `component`: of the whole layer;
    `verdicts[direction]`: the audit's rule on this network."""

    table: dict[str, dict[str, float | None]]
    sweep: list[tuple[float, float]]
    span: float
    component: float
    verdicts: dict[str, Verdict]


def run_toy(pairs: int = 200, seed: int = 0) -> ToyResult:
    """All experiments on `pairs` random inputs. Nothing is typed in: every number is computed by
    patching the network."""
    generator = torch.Generator().manual_seed(seed)
    base, source = torch.randn(2, pairs, generator=generator, dtype=torch.float64)

    def effects(basis: Tensor) -> dict[str, float | None]:
        return {
            name: None if patch is None else effect(patch, base, source)
            for name, patch in patches_of(basis).items()
        }

    sweep = [
        (float(degrees), effect(SubspacePatch(illusory(degrees)), base, source))
        for degrees in range(0, 91, 5)
    ]
    return ToyResult(
        {name: effects(basis) for name, basis in DIRECTIONS.items()},
        sweep,
        effect(SubspacePatch(torch.cat([E1, E2], dim=1)), base, source),
        effect(Full(), base, source),
        {name: judge(basis, base, source) for name, basis in DIRECTIONS.items()},
    )


def judge(basis: Tensor, base: Tensor, source: Tensor) -> Verdict:
    """The audit's rule on this network. Its output map has rank 1, so the row/null test is void:
    the unit row part of *any* direction that is read at all is the same line."""
    size = effect(SubspacePatch(basis), base, source)
    exact = Estimate(value=size, low=size, high=size)
    return decide(
        Evidence(tests={}, effect=exact, fldd=exact, units=len(base), exact=True, rank_too_low=True)
    )
