"""`bench_find`: whether a search finds what is known to be there, in models that were trained to
have z at a known place, and in models into which a circuit was planted by hand.

What a search presents is held against interventions that it knows nothing of (`carrying.carried`).
A site is right where they say that it carries z, whether or not it is the one that was trained or
planted. Where it is known what carries z there, the subspace is held against that too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ..core.geometry import orthonormal, unit
from ..core.kept import keep, kept
from ..core.progress import track
from ..core.site import Site
from ..core.statistics import exact_proportion
from ..engine.task_capture import capture_task
from ..find import Found, find
from ..fit.subspace import Subspace
from .carrying import carried
from .kept import source_sha256
from .trained import Case
from .truth import TrainedModel, load_trained, planted_models, trained_names

SCHEMA = "subspacelens.bench.find/2"
ABOVE = ("sweep", "find")
"""The rooms that this computes with beside those of every benchmark."""
PAIRS = 192
PLANTED = 20
CLOSE = 0.9
"""The true channel is recovered where the mean squared cosine with it is at least this."""
RATES = ("named", "carries", "first", "recovered", "faithful", "illusory")


def bench_find(
    folder: Path,
    names: Sequence[str] | None = None,
    *,
    planted: int = PLANTED,
    budget: str = "fast",
    pairs: int = PAIRS,
    seed: int = 0,
) -> dict:
    """Searches the models `names`, of `trained_names`, or all, and `planted` planted ones. The
    result is made of JSON types: a row a model, and for either `part`, trained and planted, shares
    of its models with exact 95 % intervals:

    - `named`: the site that was trained or planted is among what was found (of an MLP, the stream
      behind it is that site too, and the MLP that writes straight into a stream);
    - `carries`: all that was found is at sites that carry z, and something was found;
    - `first`: the best that was found is at such a site;
    - `recovered`: it is known what carries z there, and the mean squared cosine with it is at least
      `CLOSE`;
    - `faithful`: the best that was found is faithful by interventions;
    - `illusory`: something was found that is illusory by them.

    What a model came to is kept in `folder` and not done again by the same code.

    Raises `LensError` for another budget.

    >>> bench_find(Path("runs/bench-find"), ["mlp"], planted=0)["rates"]["trained"]["named"]
    """
    asked = {"budget": budget, "pairs": pairs, "seed": seed, "code": source_sha256(*ABOVE)}
    names = trained_names() if names is None else names
    models: Iterator[tuple[str, TrainedModel]] = chain(
        (("trained", load_trained(name)) for name in names),
        (("planted", model) for model in planted_models(planted)),
    )
    rows = []
    for part, model in track(models, "models", total=len(names) + planted):
        origin = asked | {"weights": model.lens.weights_sha256}
        path = folder / f"{model.name}.json"
        row = kept(path, origin)
        if row is None:
            row = {"part": part} | _row(model, budget, pairs, seed) | {"origin": origin}
            keep(path, row)
        rows.append(row)
    parts = dict.fromkeys(row["part"] for row in rows)
    rates = {part: _rates([row for row in rows if row["part"] == part]) for part in parts}
    return {"schema": SCHEMA, "budget": budget, "rates": rates, "models": rows}


def _row(model: TrainedModel, budget: str, pairs: int, seed: int) -> dict:
    task = model.task(pairs, pairs, seed)
    found = find(model.lens, task, budget=budget, seed=seed)
    places = found.record.found
    spaces = [found.subspaces[place.site] for place in places]
    sites = dict.fromkeys([*(s.site for s in spaces), model.site, model.behind])
    case = Case(model, capture_task(model.lens, task, sites))
    return {
        "model": model.name,
        "site": str(model.site),
        "dim": model.basis.shape[1],
        "answer": found.record.answer,
        "outcome": found.record.outcome,
        "found": [
            {"site": place.site, "dim": place.dim, "label": place.label,
             "true_site": at_truth(model, space.site), "cosine": cosine(case, space)}
            | carried(case, space)
            for place, space in zip(places, spaces, strict=True)
        ],
        "looked_at": _looked_at(found, model),
        "fooled": [place.site for place in found.record.fooled],
        "undetermined": [place.site for place in found.record.undetermined],
        "cpu_seconds": found.record.cpu_seconds,
    }  # fmt: skip


def at_truth(model: TrainedModel, site: Site) -> bool:
    """Whether a site is the one at which z was trained or planted to live, or as good: the stream
    behind an MLP, and the MLP that writes straight into a stream, where nothing else is said to."""
    mlp = replace(model.site, stream="mlp_act", head=None)
    if model.site == mlp:
        return site in (mlp, model.behind)
    return site == model.site or (site == mlp and model.site == model.behind and not model.channels)


def cosine(case: Case, subspace: Subspace) -> float | None:
    """Mean squared cosine between what the subspace writes and what carries z there; None where
    that is not known."""
    known, site = case.known(subspace.site), subspace.site
    if known is not None:
        return _shared(known.weight @ subspace.basis, known.written)
    channel = case.trained.channels.get(site)
    if channel is None:
        return None
    weight = case.trained.lens.map.writer(site)
    ours, true = (b if weight is None else weight @ b for b in (subspace.basis, channel))
    return _shared(ours, true)


def _shared(ours: Tensor, true: Tensor) -> float:
    first, second = (orthonormal(unit(each.double())) for each in (ours, true))
    count = min(first.shape[1], second.shape[1])
    return float(torch.linalg.norm(first.T @ second).square() / count)


def _looked_at(found: Found, model: TrainedModel) -> dict[str, dict]:
    """What its audit says at each true site that was audited."""
    return {
        place.site: {"label": place.label, "code": place.code, "reasons": place.reasons}
        for place in found.record.places
        if at_truth(model, Site.parse(place.site))
    }


def _rates(rows: Sequence[Mapping]) -> dict[str, dict]:
    def share(name: str, hits: Sequence[bool]) -> tuple[str, dict]:
        return name, exact_proportion(sum(hits), len(hits)).model_dump()

    found = [row["found"] for row in rows]
    best = [each[0] if each else None for each in found]
    return {"models": {"value": len(rows)}} | dict(
        share(name, hits)
        for name, hits in {
            "named": [any(each["true_site"] for each in places) for places in found],
            "carries": [
                bool(places) and all(each["carries"] for each in places) for places in found
            ],
            "first": [bool(each and each["carries"]) for each in best],
            "recovered": [bool(each and (each["cosine"] or 0.0) >= CLOSE) for each in best],
            "faithful": [bool(each and each["truth"] == "faithful") for each in best],
            "illusory": [any(each["truth"] == "illusory" for each in places) for places in found],
        }.items()
    )
