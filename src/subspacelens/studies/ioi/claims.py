"""What agrees with the paper and what does not, read off the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ...results import _Record
from ...site import Site
from .controls import Control
from .dormant import Dormant
from .success import Success
from .table import Row

MUCH_MORE = 4.0
HALF = 0.5
NOTHING = 0.01
MOST = 0.8


class Claim(_Record):
    """One claim of the paper, at one site of this model. `agrees` is None where the numbers cannot
    say (no effect to speak of)."""

    claim: str
    site: str
    agrees: bool | None
    numbers: str


def claims(
    rows: Sequence[Row],
    dormant: Sequence[Dormant],
    success: Sequence[Success],
    controls: Sequence[Control],
) -> list[Claim]:
    """Every claim at every site that it speaks of."""
    table: dict[str, dict[str, Row]] = {}
    for row in rows:
        table.setdefault(row.site, {})[row.patch] = row
    found = []
    for site, patches in table.items():
        of = _mlp if Site.parse(site).stream == "mlp_act" else _residual
        found += of(site, {name: _fldd(row) for name, row in patches.items()}, patches)
    found += [_written(item) for item in dormant]
    for item in success:
        found += _succeeded(item)
    return found + _controlled(controls)


def _fldd(row: Row) -> float:
    return row.fldd.value if row.fldd.value is not None else float("nan")


def _mlp(site: str, fldd: dict[str, float], rows: dict[str, Row]) -> list[Claim]:
    full, v = fldd["full"], fldd["v_MLP"]
    row, null = fldd.get("v_MLP row", 0.0), fldd.get("v_MLP null", 0.0)
    iia, no_op = rows["v_MLP"].iia, rows["v_MLP"].iia_no_op

    def claim(text: str, agrees: bool, numbers: str) -> Claim:
        there = _acts(rows["v_MLP"])
        return Claim(claim=text, site=site, agrees=agrees if there else None, numbers=numbers)

    return [
        claim(
            "Patching one direction of the MLP does far more than patching the whole MLP",
            v >= MUCH_MORE * full,
            f"FLDD of v_MLP {v:.2f}, of the whole MLP {full:.2f}",
        ),
        claim(
            "Without the part that nothing reads, most of the effect goes away",
            row <= HALF * v,
            f"FLDD of v_MLP {v:.2f}, of its unit row part {row:.2f}",
        ),
        claim(
            "The part that nothing reads does nothing by itself",
            abs(null) < NOTHING,
            f"FLDD of the unit null part {null:.3f}",
        ),
        claim(
            "The effect shows in the logit difference, hardly in the model's top token",
            (iia.value or 0.0) - (no_op.value or 0.0) < 0.1,
            f"IIA of v_MLP {iia.value:.2f}, of no patch {no_op.value:.2f}",
        ),
    ]


def _residual(site: str, fldd: dict[str, float], rows: dict[str, Row]) -> list[Claim]:
    full, v, along = fldd["full"], fldd["v_resid"], fldd.get("v_resid along readers", 0.0)
    null = fldd.get("v_resid null", 0.0)
    iia = rows["v_resid"].iia.value or 0.0

    def claim(text: str, agrees: bool, numbers: str) -> Claim:
        there = _acts(rows["v_resid"])
        return Claim(claim=text, site=site, agrees=agrees if there else None, numbers=numbers)

    return [
        claim(
            "At the bottleneck a single direction does at least what the whole stream does",
            v >= full,
            f"FLDD of v_resid {v:.2f}, of resid_post {full:.2f}",
        ),
        claim(
            "Along what its readers read, the direction keeps most of its effect",
            along >= MOST * v,
            f"FLDD of v_resid {v:.2f}, along its readers {along:.2f}, off them {null:.2f}",
        ),
        claim(
            "Directions found without search, v_grad and v_mean, have a large effect too",
            min(fldd["v_grad"], fldd["v_mean"]) >= HALF * v,
            f"FLDD of v_grad {fldd['v_grad']:.2f}, of v_mean {fldd['v_mean']:.2f}",
        ),
        claim(
            "The model's top token follows the patch in half of the pairs or more",
            iia >= HALF,
            f"IIA of v_resid {iia:.2f}",
        ),
    ]


def _acts(row: Row) -> bool:
    """The interval of the effect lies above 0."""
    return row.fldd.low is not None and row.fldd.low > 0


def _written(item: Dormant) -> Claim:
    gaps = f"{item.natural_gap:.1f} in nature, {item.patched_gap:.1f} when patched"
    return Claim(
        claim="The patch drives the MLP's output along v_grad to where nature never is",
        site=item.site,
        agrees=item.in_range < HALF,
        numbers=(
            f"{item.in_range:.0%} of patched values in the natural 99 %; classes apart by {gaps} "
            "(natural standard deviations)"
        ),
    )


def _succeeded(item: Success) -> list[Claim]:
    auroc = item.separation.value or 0.0
    least = min(item.cosines.values())
    cosines = ", ".join(f"{name} {value:.2f}" for name, value in item.cosines.items())
    names = [leak for leak in item.leaks if leak.what != "position"]
    leaks = ", ".join(f"{x.what} {x.test.value:.1%} (chance {x.chance:.1%})" for x in names)
    return [
        Claim(
            claim="The two classes are told apart along v_resid in natural prompts",
            site=item.site,
            agrees=auroc >= 0.95,
            numbers=f"AUROC {auroc:.3f}",
        ),
        Claim(
            claim="v_resid, v_grad and v_mean agree far beyond chance",
            site=item.site,
            agrees=least >= HALF,
            numbers=f"{cosines}; random {item.random_cosine:.2f}",
        ),
        Claim(
            claim="The direction says nothing of which names there are",
            site=item.site,
            agrees=all(
                leak.test.low is not None and leak.test.low <= leak.chance for leak in names
            ),
            numbers=leaks,
        ),
    ]


def _controlled(controls: Sequence[Control]) -> list[Claim]:
    found = []
    for site in dict.fromkeys(c.site for c in controls if c.control == "random-weight MLP"):
        mine = [c for c in controls if c.control == "random-weight MLP" and c.site == site]
        mean = {
            patch: sum(c.fldd.value or 0.0 for c in mine if c.patch == patch)
            / max(1, sum(c.patch == patch for c in mine))
            for patch in ("full", "v", "v row")
        }
        found.append(
            Claim(
                claim="An MLP of random weights has an illusory direction as well",
                site=site,
                agrees=mean["v"] >= 0.1 and mean["v"] >= MUCH_MORE * mean["full"],
                numbers=(
                    f"mean FLDD of v {mean['v']:.2f}, of the whole random MLP {mean['full']:.2f}, "
                    f"of the unit row part {mean['v row']:.2f}"
                ),
            )
        )
    return found
