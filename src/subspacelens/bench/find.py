"""`bench_find`: whether a search finds what is known to be there, in models that were trained to
have z at a known place.

A search is right about a model where it presents a subspace at that place: at the site, or, of an
MLP, in the stream behind it, or in the MLP that writes straight into a stream. What it presents
there and elsewhere is held against interventions (`trained.truth_of`), which it knows nothing of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.geometry import orthonormal, unit
from ..core.progress import track
from ..core.statistics import exact_proportion
from ..engine.task_capture import capture_task
from ..find import Found, find
from ..fit.subspace import Subspace
from .kept import keep, kept, source_sha256
from .trained import Case, truth_of
from .truth import load_trained, parity_task, trained_names

SCHEMA = "subspacelens.bench.find/1"
PAIRS = 192
CLOSE = 0.9
"""The true channel is recovered where the mean squared cosine with it is at least this."""


def bench_find(
    folder: Path,
    names: Sequence[str] | None = None,
    *,
    budget: str = "fast",
    pairs: int = PAIRS,
    seed: int = 0,
) -> dict:
    """Searches the models `names`, of `trained_names`, or all. The result is made of JSON types: a
    row a model, and shares of the models with exact 95 % intervals: `named`, the true site is among
    what was found; `first`, it is the best; `recovered`, the subspace there has a mean squared
    cosine of `CLOSE` with the true channel; `illusory`, something is presented as found that
    interventions call illusory. What a model came to is kept in `folder` and not done again by the
    same code.

    Raises `LensError` for another budget.

    >>> bench_find(Path("runs/bench-find"), ["mlp"])["rates"]["named"]["value"]
    """
    origin = {"budget": budget, "pairs": pairs, "seed": seed, "code": source_sha256()}
    rows = []
    for name in track(names or trained_names(), "trained models"):
        path = folder / f"{name}.json"
        row = kept(path, origin)
        if row is None:
            row = _row(name, budget, pairs, seed) | {"origin": origin}
            keep(path, row)
        rows.append(row)
    return {"schema": SCHEMA, "budget": budget, "rates": _rates(rows), "models": rows}


def _row(name: str, budget: str, pairs: int, seed: int) -> dict:
    trained, task = load_trained(name), parity_task(pairs, pairs, seed)
    found = find(trained.lens, task, budget=budget, seed=seed)
    places = found.record.found
    spaces = [found.subspaces[place.site] for place in places]
    sites = dict.fromkeys([*(s.site for s in spaces), trained.site, trained.behind])
    case = Case(trained, capture_task(trained.lens, task, sites))
    return {
        "model": name,
        "site": str(trained.site),
        "dim": trained.basis.shape[1],
        "answer": found.record.answer,
        "outcome": found.record.outcome,
        "found": [
            {"site": place.site, "dim": place.dim, "label": place.label, "true_site": at_truth(
                case, space), "cosine": cosine(case, space)} | truth_of(case, space)
            for place, space in zip(places, spaces, strict=True)
        ],
        "looked_at": _looked_at(found, case),
        "fooled": [place.site for place in found.record.fooled],
        "cpu_seconds": found.record.cpu_seconds,
    }  # fmt: skip


def at_truth(case: Case, subspace: Subspace) -> bool:
    """Whether it is known on both sides what is true at its site."""
    return case.known(subspace.site) is not None


def cosine(case: Case, subspace: Subspace) -> float | None:
    """Mean squared cosine between what the subspace writes and the true channel; None elsewhere."""
    known = case.known(subspace.site)
    if known is None:
        return None
    ours = orthonormal(unit((known.weight @ subspace.basis).double()))
    true = orthonormal(unit(known.written.double()))
    return float((true.T @ ours).square().sum() / min(true.shape[1], ours.shape[1]))


def _looked_at(found: Found, case: Case) -> dict[str, str]:
    """The verdict at each true site that was audited."""
    return {
        place.site: place.label
        for place in found.record.places
        if at_truth(case, found.subspaces[place.site])
    }


def _rates(rows: Sequence[dict]) -> dict[str, dict]:
    def share(hits: Sequence[bool]) -> dict:
        return exact_proportion(sum(hits), len(hits)).model_dump()

    def at(row: dict) -> list[dict]:
        return [each for each in row["found"] if each["true_site"]]

    return {
        "models": {"value": len(rows)},
        "named": share([bool(at(row)) for row in rows]),
        "first": share([bool(row["found"]) and row["found"][0]["true_site"] for row in rows]),
        "recovered": share([any(e["cosine"] >= CLOSE for e in at(row)) for row in rows]),
        "illusory": share([any(e["truth"] == "illusory" for e in row["found"]) for row in rows]),
    }
