"""The paper's IOI study on any model: where the circuit is, what is an illusion, what is not.

Makelov, Lange and Nanda (arXiv 2311.17030, §3-4) patch GPT-2 small at the last token. Here the
circuit is searched for first, so that the study runs wherever a model does the task.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from ...audit import Audit, audit
from ...core.errors import SiteError
from ...core.machine import versions
from ...core.progress import track
from ...core.site import Site
from ...engine.patches import Patch
from ...engine.random_weights import mlp_input
from ...engine.task_capture import capture_task
from ...measure.maps import PatchingMap
from ...model.lens import LensModel
from ...tasks import PairSet
from ..promised import promises
from .circuit import Circuit, find_circuit
from .claims import claims
from .contrast import Contrast, contrasts
from .controls import (
    Control,
    Setup,
    controls,
    losses,
    random_model_controls,
    selectivity,
    stability,
)
from .data import FRESH, study_data
from .directions import find_directions, table_patches
from .dormant import dormant
from .plan import FULL, QUICK, Sizes, preset_for
from .record import Generalisation, IoiRecord, Verdict
from .success import success
from .table import evaluate


@dataclass(frozen=True)
class IoiStudy:
    """All that was found: the record, the patching map that the circuit was read off, and the
    audits of what DAS found (`das`) and of illusions that were built (`constructed`)."""

    record: IoiRecord
    map: PatchingMap = field(repr=False)
    audits: dict[str, tuple[Audit, ...]] = field(repr=False)

    def __repr__(self) -> str:
        agreed = [claim.agrees for claim in self.record.claims]
        return (
            f"IoiStudy({self.record.model.id}: {agreed.count(True)} claims of the paper agree, "
            f"{agreed.count(False)} do not)"
        )


def reproduce_ioi(
    lens: LensModel,
    *,
    preset: str | None = None,
    quick: bool = False,
    seed: int = 0,
    memory: int | None = None,
    sizes: Sizes | None = None,
    command: str = "",
) -> IoiStudy:
    """The whole study. `preset` takes the sites and heads of a known circuit (`gpt2`: the paper's,
    and the default for that model) in place of the search. `quick` is for a first look; `sizes`
    sets the size of every part by hand. `memory` is the budget of a replay in bytes.

    Raises `ModelError` for a model that is too small for the preset or hides its attention, and
    `TaskError` for a tokenizer without enough names.
    """
    started = time.monotonic()
    known = preset_for(lens, preset)
    sizes = sizes or (QUICK if quick else FULL)
    data = study_data(lens, sizes, bos=known is not None and known.bos, seed=seed)
    circuit = find_circuit(lens, data.task.train, known, limit=sizes.map, memory=memory)
    captures = capture_task(lens, data.task, _sites(lens, circuit), memory=memory)
    directions = [
        find_directions(captures.train, place, circuit.name_movers, sizes, seed=seed)
        for place in circuit.places
    ]
    patches = {
        site: named for each in directions for site, named in table_patches(lens, each).items()
    }
    bottlenecks = [place.bottleneck for place in circuit.places]
    evaluation = evaluate(lens, data.fresh, patches, keep=bottlenecks, memory=memory)
    table, fresh = evaluation.rows(paper=True), contrasts(evaluation, FRESH)
    others = [_elsewhere(lens, kind, x, patches, memory) for kind, x in data.variants.items()]
    dormants = [
        dormant(captures.test.at(site), each.mlps[site], v_grad)
        for each in directions
        for site, v_grad in each.outputs.items()
    ]
    good = [
        success(lens, evaluation, each, limit=sizes.heads, memory=memory)
        for each in track(directions, "success case")
    ]
    setups = [Setup(captures, each, sizes, seed) for each in directions]
    audits = _audits(setups, every=not quick)
    checks = [row for setup in setups for row in controls(setup)]
    checks += [_random_directions(result) for result in audits["das"]]
    checks += random_model_controls(setups)
    by_loss = [row for setup in setups for row in losses(setup)]
    logit_diff, top_answer = evaluation.clean
    record = IoiRecord(
        model=circuit.map.model,
        preset=known and known.name,
        quick=quick,
        seed=seed,
        sizes=asdict(sizes),
        fresh_sha256=data.fresh.sha256,
        clean_logit_diff=logit_diff,
        clean_top_answer=top_answer,
        circuit=circuit.record,
        table1=table,
        contrasts=[*fresh, *(contrast for _, several in others for contrast in several)],
        losses=by_loss,
        dormant=dormants,
        success=good,
        generalisation=[item for item, _ in others],
        controls=checks,
        stability=[row for setup in setups for row in stability(setup)],
        selectivity=selectivity(by_loss, checks),
        verdicts=[
            Verdict(
                site=result.record.site,
                direction=kind,
                label=result.label,
                score=result.record.verdict.score,
            )
            for kind, several in audits.items()
            for result in several
        ],
        promises=promises(lens, data.task.test, patches, memory=memory),
        refined=promises(lens, data.task.test, patches, refined=True, memory=memory),
        claims=claims(table, fresh, dormants, good, checks),
        seconds=time.monotonic() - started,
        versions=versions(),
        command=command,
    )
    return IoiStudy(record, circuit.map, audits)


def _sites(lens: LensModel, circuit: Circuit) -> list[Site]:
    """Everywhere that something is fitted, and where a random MLP would read."""
    sites = []
    for place in circuit.places:
        sites += [place.bottleneck, *place.mlps]
        for site in place.mlps:
            with suppress(SiteError):
                sites.append(mlp_input(lens, site))
    return sites


def _audits(setups: list[Setup], *, every: bool) -> dict[str, tuple[Audit, ...]]:
    """Audits of what DAS found at every site and of the illusion that is built at the main MLP of
    each place; or, unless `every`, only of what DAS found at the chosen sites."""

    def judged(setup: Setup, subspaces) -> list[Audit]:
        return [audit(setup.lens, setup.captures, v, seed=setup.seed) for v in subspaces]

    audits: dict[str, list[Audit]] = {"das": [], "constructed": []}
    for setup in setups:
        of_site = setup.directions.all
        chosen = of_site if every else setup.chosen
        audits["das"] += judged(setup, [of_site[site] for site in chosen])
        if every:
            audits["constructed"] += judged(setup, [setup.illusion("v_resid")])
    return {kind: tuple(several) for kind, several in audits.items() if several}


def _random_directions(result: Audit) -> Control:
    """The mean over the audit's random directions and the range of 95 % of them."""
    effects = result.record.effects["random"]
    return Control(
        control="random directions",
        site=result.record.site,
        patch="v",
        seed=0,
        nats=effects.nats,
        fldd=effects.fldd,
        iia=effects.iia,
        iia_no_op=result.record.no_op.iia,
    )


def _elsewhere(
    lens: LensModel,
    kind: str,
    pairs: PairSet,
    patches: Mapping[Site, Mapping[str, Patch | None]],
    memory: int | None,
) -> tuple[Generalisation, list[Contrast]]:
    evaluation = evaluate(lens, pairs, patches, memory=memory)
    logit_diff, top_answer = evaluation.clean
    item = Generalisation(
        kind=kind,
        example=pairs[0].base.text,
        pairs=len(pairs),
        clean_logit_diff=logit_diff,
        clean_top_answer=top_answer,
        rows=evaluation.rows(),
    )
    return item, contrasts(evaluation, kind)
