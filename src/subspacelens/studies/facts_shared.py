"""Beyond the paper: one subspace for a whole relation, judged on facts that it never saw."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import TaskError
from ..core.site import Site
from ..engine.capture import capture
from ..engine.patches import Full, SubspacePatch
from ..fit.das import das
from ..model.lens import LensModel
from ..tasks.facts import SUBJECT, Fact, fact_pairs, pair_set
from .facts_record import SharedRecord
from .trying import tried

FEWEST = 6
PAIRS = 24


def shared_subspaces(
    lens: LensModel, known: Sequence[Fact], layers: Sequence[int], *, dim: int, seed: int = 0
) -> list[SharedRecord]:
    """For every relation with at least `FEWEST` known facts and pairs a half: DAS on pairs of the
    even facts, tried on pairs of the odd ones, at each of `layers`."""
    if not layers:
        return []
    records: list[SharedRecord] = []
    groups: dict[str, list[Fact]] = {}
    for fact in known:
        groups.setdefault(fact.relation, []).append(fact)
    sites = [Site(layer, "mlp_act", SUBJECT) for layer in layers]
    for relation, facts in groups.items():
        if len(facts) < 2 * FEWEST:
            continue
        try:
            train, test = (
                pair_set(
                    lens.tokenizer,
                    fact_pairs(
                        lens.tokenizer, facts[half::2], per_relation=PAIRS, fewest=FEWEST, seed=seed
                    ),
                )
                for half in (0, 1)
            )
        except TaskError:
            continue
        captures = [capture(lens, pairs, sites, shifted=True) for pairs in (train, test)]
        for site in sites:
            fitted = das(lens, captures[0], site, dim=dim)
            patch = SubspacePatch(fitted.basis)
            replays = [captured.at(site) for captured in captures]
            records.append(
                SharedRecord(
                    relation=relation,
                    layer=site.layer,
                    dim=dim,
                    train=tried(replays[0], patch),
                    test=tried(replays[1], patch),
                    test_full=tried(replays[1], Full()),
                )
            )
    return records
