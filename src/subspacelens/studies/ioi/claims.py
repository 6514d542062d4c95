"""What agrees with the paper and what does not, read off the numbers by fixed rules."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ...core.records import Estimate, Record
from .contrast import KEPT, READ, UNREAD, WHOLE, Contrast
from .controls import Control
from .dormant import Dormant
from .success import Success
from .table import Row

HALF = 0.5
SMALL_IIA = 0.1
SMALL_FLDD = 0.1
APART = 0.95


class Claim(Record):
    """One claim of the paper, at one site of this model. `agrees` is None where the numbers cannot
    say (no effect to speak of)."""

    claim: str
    site: str
    agrees: bool | None
    numbers: str


def claims(
    rows: Sequence[Row],
    contrasts: Sequence[Contrast],
    dormant: Sequence[Dormant],
    success: Sequence[Success],
    controls: Sequence[Control],
) -> list[Claim]:
    """Every claim at every site that it speaks of; `contrasts` are those of the pairs of `rows`."""
    table: dict[str, dict[str, Row]] = {}
    for row in rows:
        table.setdefault(row.site, {})[row.patch] = row
    found = []
    for contrast in contrasts:
        of = _mlp if contrast.rule == "illusion" else _residual
        found += of(contrast, table[contrast.site])
    found += [_written(item) for item in dormant]
    for item in success:
        found += _succeeded(item)
    return found + _random_weights(controls)


def said(estimate: Estimate) -> str:
    """`1.39 [1.19, 1.62]`."""
    if estimate.value is None:
        return "none"
    text = _signed(estimate.value)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{_signed(estimate.low)}, {_signed(estimate.high)}]"
    return text


def _signed(value: float) -> str:
    """Two decimals with a true minus, and none before a zero."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _mlp(found: Contrast, rows: dict[str, Row]) -> list[Claim]:
    row = rows["v_MLP"]
    iia, no_op = row.iia.value or 0.0, row.iia_no_op.value or 0.0

    def claim(text: str, agrees: bool, numbers: str) -> Claim:
        verdict = agrees if _above_zero(found.effect) else None
        return Claim(claim=text, site=found.site, agrees=verdict, numbers=numbers)

    return [
        claim(
            "One direction of the MLP does at least four times what the whole MLP does",
            (found.whole.value or 0.0) <= WHOLE,
            f"FLDD of v_MLP {said(found.effect)}; the whole MLP does {said(found.whole)} of it",
        ),
        claim(
            "Without the part that nothing reads, at most half of the effect is left",
            (found.read.value or 0.0) <= READ,
            f"the unit read part does {said(found.read)} of it",
        ),
        claim(
            "The part that nothing reads does nothing by itself",
            abs(found.unread.value or 0.0) < UNREAD,
            f"FLDD of the unit unread part {said(found.unread)}",
        ),
        claim(
            "The effect shows in the logit difference, hardly in the model's top token",
            iia - no_op < SMALL_IIA,
            f"IIA of v_MLP {said(row.iia)}, of no patch {no_op:.2f}",
        ),
    ]


def _residual(found: Contrast, rows: dict[str, Row]) -> list[Claim]:
    v = found.effect.value or 0.0
    without = [name for name in ("v_grad", "v_mean") if name in rows]

    def fldd(patch: str) -> float:
        return rows[patch].fldd.value or 0.0

    def claim(text: str, agrees: bool, numbers: str) -> Claim:
        verdict = agrees if _above_zero(found.effect) else None
        return Claim(claim=text, site=found.site, agrees=verdict, numbers=numbers)

    return [
        claim(
            "At the bottleneck one direction does at least what the whole stream does",
            v >= fldd("full"),
            f"FLDD of v_resid {said(found.effect)}, of resid_post {said(rows['full'].fldd)}",
        ),
        claim(
            "Along what its readers read, the direction keeps most of its effect (80 % or more)",
            (found.read.value or 0.0) >= KEPT,
            f"{said(found.read)} of it; FLDD of the part that they do not read "
            f"{said(found.unread)}",
        ),
        claim(
            "Directions found without search, v_grad and v_mean, have a large effect too "
            "(half of v_resid's or more)",
            min(map(fldd, without)) >= HALF * v,
            "FLDD " + ", ".join(f"of {name} {said(rows[name].fldd)}" for name in without),
        ),
        claim(
            "The model's top token follows the patch in half of the pairs or more",
            (rows["v_resid"].iia.value or 0.0) >= HALF,
            f"IIA of v_resid {said(rows['v_resid'].iia)}",
        ),
    ]


def _above_zero(effect: Estimate) -> bool:
    return effect.low is not None and effect.low > 0


def _written(item: Dormant) -> Claim:
    return Claim(
        claim="The patch drives the MLP's output along v_grad to where nature never is",
        site=item.site,
        agrees=item.in_range < HALF,
        numbers=(
            f"{item.in_range:.0%} of patched values inside the natural 99 % "
            f"({item.in_range_written:.0%} along what the patch itself writes); classes "
            f"{abs(item.natural_gap):.1f} natural standard deviations apart, patched "
            f"{abs(item.patched_gap):.1f}"
        ),
    )


def _succeeded(item: Success) -> list[Claim]:
    least = min(item.cosines.values())
    cosines = ", ".join(f"{name} {value:.2f}" for name, value in item.cosines.items())
    names = [leak for leak in item.leaks if leak.what != "position"]
    leaks = ", ".join(f"{x.what} {x.test.value:.1%} (chance {x.chance:.1%})" for x in names)
    return [
        Claim(
            claim="The two classes are told apart along v_resid in natural prompts",
            site=item.site,
            agrees=(item.separation.value or 0.0) >= APART,
            numbers=f"AUROC {said(item.separation)}",
        ),
        Claim(
            claim="v_resid, v_grad and v_mean agree far beyond chance (cosines of a half or more)",
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


def _random_weights(controls: Sequence[Control]) -> list[Claim]:
    mine = [control for control in controls if control.control == "random-weight MLP"]
    found = []
    for site in dict.fromkeys(control.site for control in mine):
        full, v, row = (
            fmean(c.fldd.value or 0.0 for c in mine if (c.site, c.patch) == (site, patch))
            for patch in ("full", "v", "v row")
        )
        found.append(
            Claim(
                claim="An MLP of random weights has an illusory direction as well",
                site=site,
                agrees=v >= SMALL_FLDD and full <= WHOLE * v,
                numbers=(
                    f"mean FLDD of v {_signed(v)}, of the whole random MLP {_signed(full)}, "
                    f"of the unit read part {_signed(row)}"
                ),
            )
        )
    return found
