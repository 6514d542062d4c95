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

from ..audit.record import Test, Verdict
from ..audit.verdict import EXACT, Evidence, decide
from ..core.first_order import first_order
from ..core.geometry import Split, haar, orthonormal
from ..core.illusion_share import illusion_share
from ..core.records import Estimate
from ..engine.patches import Full, Patch, ReadWrite, SubspacePatch
from ..measure.effects import RANDOM_DRAWS

READ_IN = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
READ_OUT = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
E1, E2, E3 = torch.eye(3, dtype=torch.float64)[:, :, None]

DIRECTIONS = {
    "e1 (disconnected)": E1,
    "e2 (dormant)": E2,
    "e3 (faithful)": E3,
    "(e1 + e2)/√2 (illusory)": (E1 + E2) / 2**0.5,
}
READINGS = {
    "full_component": "the whole component does {:.0%} of what the direction does",
    "row_effect": "without its disconnected part the direction keeps {:.0%} of its effect",
    "covariation": "where nature moves the reading by 1, {:.2f} is written along the direction",
}
TAKEN_APART = {
    "natural": "as much of the natural change as it takes has {:.0%} of the effect",
    "beyond": "without the natural change, what is written has {:.0%} of the effect",
    "acting": "reading only along the one dimension that acts, it keeps {:.0%}",
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
    `verdicts[direction]`: what the audit's rule says if the component is the units that the
    direction has a part in, and if it is the whole layer; `promises`: what the first-order theory,
    which is exact here, has for the components that illusory directions are found in."""

    table: dict[str, dict[str, float | None]]
    sweep: list[tuple[float, float]]
    span: float
    component: float
    verdicts: dict[str, tuple[Judged, Judged]]
    promises: list[Promised]


@dataclass(frozen=True)
class Promised:
    """Of the component that consists of these `units` (from 1): the best direction as the theory
    has it, what it and the whole component do, the cosine between what varies and what acts, and
    the share of illusion."""

    units: tuple[int, ...]
    direction: list[float]
    best: float
    whole: float
    cosine: float
    illusion: float


@dataclass(frozen=True)
class Judged:
    """A direction as a part of the component that consists of these `units` (from 1): each of the
    `EXACT` conditions, None where it does not exist, and the verdict."""

    units: tuple[int, ...]
    conditions: dict[str, float | None]
    verdict: Verdict


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
        {
            name: (judge(v, _touched(v), base, source), judge(v, (1, 2, 3), base, source))
            for name, v in DIRECTIONS.items()
        },
        [promised(units, base, source) for units in ((1, 2), (1, 2, 3))],
    )


def promised(units: tuple[int, ...], base: Tensor, source: Tensor) -> Promised:
    """The first-order theory of patches in these units: what acts is how the output is read off
    them, turned towards the source of each pair."""
    own = torch.cat([(E1, E2, E3)[unit - 1] for unit in units], dim=1)
    delta = (hidden(source) - hidden(base)) @ own
    towards = (output(hidden(source)) - output(hidden(base))).sign()
    gradients = -towards[:, None] * (READ_OUT @ own)
    found = first_order(delta, gradients)
    best, whole = found.basis(1), float((source - base).abs().mean())
    direction = own @ best[:, 0] * best[:, 0].sum().sign()
    return Promised(
        units,
        direction.tolist(),
        found.effect(1) / whole,
        found.whole / whole,
        found.cosine,
        illusion_share(delta, gradients, best),
    )


def _touched(v: Tensor) -> tuple[int, ...]:
    return tuple(unit for unit, part in enumerate(v[:, 0].tolist(), 1) if part)


def judge(v: Tensor, units: tuple[int, ...], base: Tensor, source: Tensor) -> Judged:
    """The audit's rule for a direction v (3, 1) of the component that consists of `units`, on
    evidence that is exact. The output has rank 1, at which `row_effect` is `full_component` again
    and every direction that writes as much does as much. In a language model the audit would
    therefore leave `row_effect` out; here the rule gets both as they are."""
    own = torch.cat([(E1, E2, E3)[unit - 1] for unit in units], dim=1)
    weight = READ_OUT @ own @ own.T

    def does(basis: Tensor) -> float:
        return effect(SubspacePatch(basis), base, source) if basis.shape[1] else 0.0

    size, written = does(v), weight @ v
    conditions: dict[str, float | None] = dict.fromkeys(EXACT)
    if abs(size) > 1e-9:
        read = hidden(torch.cat([base, source]))
        along = (read @ weight.T / written)[:, 0]
        reading = (read @ v)[:, 0]
        conditions = {
            "full_component": does(own) / size,
            "row_effect": does(orthonormal(Split.of(weight).row(v))) / size,
            "covariation": float(along @ reading / (reading @ reading)),
        }
    tests = {
        name: _test(value, READINGS[name].format(value))
        for name, value in conditions.items()
        if value is not None
    }
    if abs(size) > 1e-9:
        split = Split.of(weight)
        read_null = effect(ReadWrite(split.null(v), v), base, source) / size
        control = 1 - split.rank / own.shape[1]
        reading = f"reading only what is disconnected it has {read_null:.0%} of its effect"
        exact = _exactly(read_null).model_dump()
        tests["read_source"] = Test(**exact, control=control, reading=reading)
        for name, share in _taken_apart(v @ v.T, weight, own, base, source).items():
            tests[name] = _test(share / size, TAKEN_APART[name].format(share / size))
    tests["chance"] = _chance(v, own, base, source)
    verdict = decide(
        Evidence(
            tests=tests, effect=_exactly(size), fldd=_exactly(size), units=len(base), exact=True,
            whole=len(units) == v.shape[1],
        )
    )  # fmt: skip
    return Judged(units, conditions, verdict)


def _taken_apart(
    patch: Tensor, weight: Tensor, own: Tensor, base: Tensor, source: Tensor
) -> dict[str, float]:
    """What the parts of the write of a direction do (`measure.nature`), as shares of what taking
    the source does. Nature's change of a pair is its own: z is the input itself."""
    change = (hidden(source) - hidden(base)) @ own @ own.T
    write, acting = change @ patch, weight.T / weight.norm()
    visible = change @ acting
    amount = (write @ acting) * visible / visible.square().clamp(min=1e-30)
    natural = amount.clamp(0, 1) * change
    parts = {
        "natural": natural,
        "beyond": write - natural,
        "acting": change @ acting @ acting.T @ patch,
    }
    whole = output(hidden(source)) - output(hidden(base))
    return {
        name: float((part @ weight.T)[:, 0] @ whole / (whole @ whole))
        for name, part in parts.items()
    }


def _chance(v: Tensor, own: Tensor, base: Tensor, source: Tensor) -> Test:
    """As in `audit`: uniformly random directions of the component that write as much."""
    before, after = hidden(base), hidden(source)

    def written(basis: Tensor) -> Tensor:
        return output(SubspacePatch(basis).delta(before, after))

    ours = written(v)
    generator = torch.Generator().manual_seed(0)
    drawn = [written(own @ each) for each in haar(own.shape[1], 1, RANDOM_DRAWS, generator)]
    scaled = [each * (ours.norm() / each.norm().clamp(min=1e-30)) for each in drawn]
    whole = output(after) - output(before)
    above = sum(bool(abs(each @ whole) >= (1 - 1e-9) * abs(ours @ whole)) for each in scaled)
    p = (1 + above) / (1 + RANDOM_DRAWS)
    return _test(
        p,
        f"{above} of {RANDOM_DRAWS} random directions that write as much do as much (p = {p:.2g}): "
        "the output has one dimension, in which whatever is written acts alike",
    )


def _exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def _test(value: float, reading: str) -> Test:
    return Test(**_exactly(value).model_dump(), reading=reading)
