"""What agrees with the paper and what does not, read off the numbers by fixed rules."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ...core.format import fixed, with_interval
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
    judged: list[Claim] = []
    for contrast in contrasts:
        of = _mlp if contrast.rule == "illusion" else _residual
        judged += of(contrast, table[contrast.site])
    judged += [_written(item) for item in dormant]
    for item in success:
        judged += _succeeded(item)
    return judged + _random_weights(controls)


def _mlp(contrast: Contrast, rows: dict[str, Row]) -> list[Claim]:
    row = rows["v_MLP"]
    iia, no_op = row.iia.value or 0.0, row.iia_no_op.value or 0.0

    def claim(text: str, agrees: bool, numbers: str) -> Claim:
        verdict = agrees if _above_zero(contrast.effect) else None
        return Claim(claim=text, site=contrast.site, agrees=verdict, numbers=numbers)

    return [
        claim(
            "One direction of the MLP does at least four times what the whole MLP does",
            (contrast.whole.value or 0.0) <= WHOLE,
            f"FLDD of v_MLP {with_interval(contrast.effect)}; the whole MLP does "
            f"{with_interval(contrast.whole)} of it",
        ),
        claim(
            "Without the part that nothing reads, at most half of the effect is left",
            (contrast.read.value or 0.0) <= READ,
            f"the unit read part does {with_interval(contrast.read)} of it",
        ),
        claim(
            "The part that nothing reads does nothing by itself",
            abs(contrast.unread.value or 0.0) < UNREAD,
            f"FLDD of the unit unread part {with_interval(contrast.unread)}",
        ),
        claim(
            "The effect shows in the logit difference, hardly in the model's top token",
            iia - no_op < SMALL_IIA,
            f"IIA of v_MLP {with_interval(row.iia)}, of no patch {no_op:.2f}",
        ),
    ]


def _residual(contrast: Contrast, rows: dict[str, Row]) -> list[Claim]:
    v = contrast.effect.value or 0.0
    without = [name for name in ("v_grad", "v_mean") if name in rows]

    def fldd(patch: str) -> float:
        return rows[patch].fldd.value or 0.0

    def claim(text: str, agrees: bool, numbers: str) -> Claim:
        verdict = agrees if _above_zero(contrast.effect) else None
        return Claim(claim=text, site=contrast.site, agrees=verdict, numbers=numbers)

    return [
        claim(
            "At the bottleneck one direction does at least what the whole stream does",
            v >= fldd("full"),
            f"FLDD of v_resid {with_interval(contrast.effect)}, of resid_post "
            f"{with_interval(rows['full'].fldd)}",
        ),
        claim(
            "Along what its readers read, the direction keeps most of its effect (80 % or more)",
            (contrast.read.value or 0.0) >= KEPT,
            f"{with_interval(contrast.read)} of it; FLDD of the part that they do not read "
            f"{with_interval(contrast.unread)}",
        ),
        claim(
            "Directions found without search, v_grad and v_mean, have a large effect too "
            "(half of v_resid's or more)",
            min(map(fldd, without)) >= HALF * v,
            "FLDD " + ", ".join(f"of {name} {with_interval(rows[name].fldd)}" for name in without),
        ),
        claim(
            "The model's top token follows the patch in half of the pairs or more",
            (rows["v_resid"].iia.value or 0.0) >= HALF,
            f"IIA of v_resid {with_interval(rows['v_resid'].iia)}",
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
            numbers=f"AUROC {with_interval(item.separation)}",
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
    judged = []
    for site in dict.fromkeys(control.site for control in mine):
        full, v, row = (
            fmean(c.fldd.value or 0.0 for c in mine if (c.site, c.patch) == (site, patch))
            for patch in ("full", "v", "v row")
        )
        judged.append(
            Claim(
                claim="An MLP of random weights has an illusory direction as well",
                site=site,
                agrees=v >= SMALL_FLDD and full <= WHOLE * v,
                numbers=(
                    f"mean FLDD of v {fixed(v)}, of the whole random MLP {fixed(full)}, "
                    f"of the unit read part {fixed(row)}"
                ),
            )
        )
    return judged
