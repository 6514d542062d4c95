"""The paper's IOI study on any model: where the circuit is, what is an illusion, what is not.

Makelov, Lange and Nanda (arXiv 2311.17030, §3-4) patch GPT-2 small at the last token. Here the
circuit is searched for first, so that the study runs wherever a model does the task.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from pydantic import ConfigDict, Field

from ...audit import Audit, audit
from ...audit.audit import versions
from ...maps import PatchingMap
from ...model import LensModel
from ...results import Estimate, ModelRecord, _Record
from ...site import Site
from ...subspace import Subspace
from ...task_capture import capture_task
from ...tasks import PairSet
from .circuit import Circuit, Role, find_circuit
from .claims import Claim, claims
from .controls import (
    Bench,
    Control,
    LossRow,
    Stability,
    controls,
    losses,
    random_model_controls,
    stability,
)
from .data import study_data
from .directions import find_directions, table_patches
from .dormant import Dormant, dormant
from .plan import FULL, QUICK, Sizes, preset_for
from .success import Success, success
from .table import Row, evaluate

SCHEMA = "subspacelens.ioi/1"


class Verdict(_Record):
    """What the audit says of a direction; `direction` is `das` or `constructed`."""

    site: str
    direction: str
    label: str
    score: float


class Generalisation(_Record):
    """The table again on pairs of another kind; the model does the task there if it prefers the
    answer."""

    kind: str
    example: str
    pairs: int
    clean_logit_diff: Estimate
    clean_top_answer: Estimate
    rows: list[Row]


class PlaceRecord(_Record):
    """Where the study looks at one label, and whom the split at the bottleneck stands for."""

    label: str
    bottleneck: str
    mlps: list[str]
    readers: list[str]


class CircuitRecord(_Record):
    """`places`: where the study looks. `roles`: all the evidence for who does what."""

    places: list[PlaceRecord]
    name_movers: list[str]
    roles: list[Role]


class IoiRecord(_Record):
    """Schema `subspacelens.ioi/1`, as it stands in `ioi.json`."""

    schema_: Literal["subspacelens.ioi/1"] = Field(default=SCHEMA, alias="schema")
    model: ModelRecord
    preset: str | None
    quick: bool
    seed: int
    sizes: dict[str, int]
    fresh_sha256: str
    clean_logit_diff: Estimate
    clean_top_answer: Estimate
    circuit: CircuitRecord
    table1: list[Row]
    losses: list[LossRow]
    dormant: list[Dormant]
    success: list[Success]
    generalisation: list[Generalisation]
    controls: list[Control]
    stability: list[Stability]
    verdicts: list[Verdict]
    claims: list[Claim]
    seconds: float
    versions: dict[str, str]

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


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
    captures = capture_task(lens, data.task, _sites(lens, circuit))
    found = [
        find_directions(
            lens, captures.train, place, circuit.name_movers, sizes, seed=seed, memory=memory
        )
        for place in circuit.places
    ]
    patches = {
        site: named
        for directions in found
        for site, named in table_patches(lens, directions).items()
    }
    kept = [place.bottleneck for place in circuit.places]
    evaluation = evaluate(lens, data.fresh, patches, keep=kept, memory=memory)
    table = evaluation.rows(paper=True)
    seen = [
        dormant(lens, captures.test, v, directions.residual["v_grad"])
        for directions in found
        for v in directions.mlps.values()
    ]
    good = [
        success(lens, evaluation, directions, limit=sizes.heads, memory=memory)
        for directions in found
    ]
    benches = [Bench(lens, captures, directions, sizes, seed, memory) for directions in found]
    audits = {
        kind: tuple(
            audit(lens, captures, v, seed=seed, memory=memory)
            for bench in benches
            for v in chosen(bench, quick)
        )
        for kind, chosen in (("das", _searched), ("constructed", _built))
    }
    checks = [row for bench in benches for row in controls(bench)]
    checks += [_random_directions(found) for found in audits["das"]]
    checks += random_model_controls(benches)
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
        circuit=_circuit_record(circuit),
        table1=table,
        losses=[row for bench in benches for row in losses(bench)],
        dormant=seen,
        success=good,
        generalisation=[
            _generalised(lens, kind, pairs, patches, memory)
            for kind, pairs in data.variants.items()
        ],
        controls=checks,
        stability=[row for bench in benches for row in stability(bench)],
        verdicts=[
            Verdict(
                site=found.record.site,
                direction=kind,
                label=found.label,
                score=found.record.verdict.score,
            )
            for kind, several in audits.items()
            for found in several
        ],
        claims=claims(table, seen, good, checks),
        seconds=time.monotonic() - started,
        versions=versions(),
    )
    return IoiStudy(record, circuit.map, audits)


def _sites(lens: LensModel, circuit: Circuit) -> list[Site]:
    """Everywhere that something is fitted, and where a random MLP would read."""
    found = []
    for place in circuit.places:
        found += [place.bottleneck, *place.mlps]
        found += [
            replace(site, stream="resid_mid")
            for site in place.mlps
            if "resid_mid" in lens.map.blocks[site.layer].entries
        ]
    return found


def _searched(bench: Bench, quick: bool) -> list[Subspace]:
    """The DAS direction of every site, in the quick study those of the chosen ones."""
    every = bench.directions.all
    return [every[site] for site in bench.chosen] if quick else list(every.values())


def _built(bench: Bench, quick: bool) -> list[Subspace]:
    return [bench.illusion("v_resid")]


def _random_directions(found: Audit) -> Control:
    """The mean over the audit's random directions and the range of 95 % of them."""
    effects = found.record.effects["random"]
    return Control(
        control="random directions",
        site=found.record.site,
        patch="v",
        seed=0,
        nats=effects["nats"],
        fldd=effects["fldd"],
        iia=effects["iia"],
        iia_no_op=found.record.no_op["iia"],
    )


def _generalised(lens, kind: str, pairs: PairSet, patches, memory: int | None) -> Generalisation:
    found = evaluate(lens, pairs, patches, memory=memory)
    logit_diff, top_answer = found.clean
    return Generalisation(
        kind=kind,
        example=pairs[0].base.text,
        pairs=len(pairs),
        clean_logit_diff=logit_diff,
        clean_top_answer=top_answer,
        rows=found.rows(),
    )


def _circuit_record(circuit: Circuit) -> CircuitRecord:
    return CircuitRecord(
        places=[
            PlaceRecord(
                label=place.label,
                bottleneck=str(place.bottleneck),
                mlps=[str(site) for site in place.mlps],
                readers=[share.name for share in place.readers],
            )
            for place in circuit.places
        ],
        name_movers=[f"{layer}.{head}" for layer, head in circuit.name_movers],
        roles=list(circuit.roles),
    )
