"""Edits, patches and localisation (arXiv 2311.17030 §6), on the same facts at the same layers.

Each pair's base fact is to get the source's object: by a ROME edit, by the zero-setting patch that
this edit amounts to, and by a patch along a direction fitted to the pair. Beside them what the
whole component does, and what causal tracing says of the layer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isnan

import torch
from torch import Tensor

from ..certify import centred, require_streams
from ..core.errors import TaskError
from ..core.geometry import Split
from ..core.kept import Kept
from ..core.records import ModelRecord
from ..core.site import Site
from ..edit import (
    RankOneEdit,
    RomePrompts,
    RomeRecipe,
    SecondMoment,
    ZeroSetter,
    rome,
    rome_prompts,
    second_moments,
)
from ..edit.score import EditScores, Probe, essence_logs, probe, score
from ..edit.tracing import ROLES, Trace, TraceRecipe, traces
from ..engine.capture import Capture, capture
from ..engine.patches import Full, PairwisePatch, PairwiseZeroSetting
from ..engine.recall import known_facts
from ..engine.text import Corpus
from ..fit.per_pair import ClosedForm, Recipe, per_pair
from ..model.lens import LensModel
from ..tasks.facts import SUBJECT, Fact, fact_pairs, fact_prompt, object_token, pair_set
from .editing_record import EditingRecord, EditLayer, Scores, SideEffects
from .facts_record import PairRecord
from .promised import Slopes
from .trying import patched_scores, tried_all


@dataclass(frozen=True)
class EditingPlan:
    """`per_relation` facts of each relation, at `layers`."""

    layers: tuple[int, ...]
    per_relation: int = 4
    fit: ClosedForm | Recipe = field(default_factory=ClosedForm)
    rome: RomeRecipe = field(default_factory=RomeRecipe)
    trace: TraceRecipe = field(default_factory=TraceRecipe)
    seed: int = 0


def editing_plan(blocks: int, *, step: int = 3, seed: int = 0, quick: bool = False) -> EditingPlan:
    """The plan of `reproduce editing` for a model of so many blocks."""
    if step < 1:
        raise TaskError(f"--step {step}: at least 1")
    if not quick:
        return EditingPlan(tuple(range(0, blocks, step)), seed=seed)
    return EditingPlan(
        tuple(dict.fromkeys((0, blocks // 6, blocks // 2))),
        1,
        ClosedForm(steps=6),
        RomeRecipe(steps=8, prefixes=1),
        TraceRecipe(samples=1),
        seed,
    )


def run_editing(
    lens: LensModel,
    facts: Sequence[Fact],
    corpus: Corpus,
    plan: EditingPlan,
    command: str = "",
    kept: Kept | None = None,
) -> EditingRecord:
    """The whole study on facts that the model knows; what `kept` has of it is not done again.
    Raises `TaskError` where it knows too few."""
    kept = kept or Kept()
    start = time.perf_counter()
    known = known_facts(lens, facts)
    chosen = fact_pairs(lens.tokenizer, known, per_relation=plan.per_relation, seed=plan.seed)
    subjects = [replace(base, new=source.answer) for base, source in chosen]
    pairs = pair_set(lens.tokenizer, chosen)
    sites = [Site(layer, "mlp_act", SUBJECT) for layer in plan.layers]
    require_streams(lens, sites)
    captured = capture(lens, pairs, sites, shifted=True)
    moments = second_moments(lens, plan.layers, corpus)
    prompts = rome_prompts(lens, subjects, plan.layers, plan.rome)
    asked = probe(lens, subjects)
    unedited = essence_logs(lens, asked)
    before = score(lens, asked, None, unedited)
    streams = _traces(lens, subjects, plan)

    def measured(site: Site) -> EditLayer:
        moment = moments[site.layer]
        return _layer(captured, site, moment, prompts, asked, unedited, streams, plan)

    layers = [kept.part(str(site), EditLayer, partial(measured, site)) for site in sites]
    residual = streams["resid_post"]
    return EditingRecord(
        model=ModelRecord(
            id=lens.id,
            weights_sha256=lens.weights_sha256,
            dtype=str(lens.dtype).removeprefix("torch."),
        ),
        known=len(known),
        pairs=[PairRecord.of(base, source) for base, source in chosen],
        clean_logit_diff=captured.clean.logit_diff.double().tolist(),
        before=_scores(before),
        side_before=_side(before),
        layers=layers,
        trace_layers=list(plan.layers),
        trace_map=_by_role(residual),
        trace_clean=[each.clean for each in residual],
        trace_corrupted=[each.corrupted for each in residual],
        tokens=corpus.tokens,
        corpus=corpus.name,
        settings={
            "fit": asdict(plan.fit),
            "rome": asdict(plan.rome),
            "trace": asdict(plan.trace),
            "seed": plan.seed,
        },
        seconds=time.perf_counter() - start + kept.earlier,
        command=command,
    )


def _layer(
    captured: Capture,
    site: Site,
    moment: SecondMoment,
    prompts: RomePrompts,
    asked: Probe,
    unedited: Tensor,
    traces: dict[str, list[Trace]],
    plan: EditingPlan,
) -> EditLayer:
    lens, replay = captured.lens, captured.at(site)
    weight = lens.map.linear_writer(site)
    edits = rome(prompts, site.layer, moment)
    after = score(lens, asked, edits, unedited)
    a, b = (torch.stack([getattr(edit, name) for edit in edits]) for name in "ab")
    zero = ZeroSetter.of(weight, moment).directions(a, b)
    row = Split.of(weight, centred=centred(lens)).row(zero.v.T).T
    everywhere = [
        RankOneEdit(site.layer, -s * (weight.double().cpu() @ v), v)
        for s, v in zip(zero.sign, zero.v, strict=True)
    ]
    v = per_pair(lens, captured, site, recipe=plan.fit, seed=plan.seed).directions
    patched = tried_all(replay, {"v": PairwisePatch(v, v), "full": Full()})
    at = plan.layers.index(site.layer)
    return EditLayer(
        layer=site.layer,
        rome=_scores(after),
        side=_side(after),
        zero=patched_scores(replay, PairwiseZeroSetting(zero.v, zero.sign)),
        zero_everywhere=_scores(score(lens, asked.own, everywhere, unedited)),
        zero_row=patched_scores(replay, PairwiseZeroSetting(row, zero.sign)),
        cos_vb=torch.nn.functional.cosine_similarity(zero.v, b, dim=-1).abs().tolist(),
        ratio=zero.ratio.tolist(),
        sign=[int(s) for s in zero.sign],
        patch=patched["v"],
        full=patched["full"],
        trace=[float(each.at_subject[at]) for each in traces["resid_post"]],
        trace_mlp=[float(each.at_subject[at]) for each in traces["mlp_out"]],
        condition=moment.condition,
        slopes=Slopes.of(replay.difference, replay.gradients()),
    )


def _traces(lens: LensModel, facts: Sequence[Fact], plan: EditingPlan) -> dict[str, list[Trace]]:
    """Maps of the residual stream, and of windows of MLPs as in ROME, for every fact."""
    window = max(1, len(lens.map.blocks) // 5)
    recipes = {
        "resid_post": plan.trace,
        "mlp_out": replace(plan.trace, stream="mlp_out", window=window),
    }
    prompts = [fact_prompt(lens.tokenizer, fact) for fact in facts]
    answers = [object_token(lens.tokenizer, fact.answer) for fact in facts]
    return {
        stream: traces(
            lens, prompts, answers, plan.layers, recipe=recipe, subject_only=stream == "mlp_out"
        )
        for stream, recipe in recipes.items()
    }


def _by_role(traces: Sequence[Trace]) -> dict[str, list[float]]:
    effects: dict[str, list[float]] = {}
    for role in ROLES:
        columns = [
            t.effect[:, column] for t in traces for column, r in enumerate(t.roles) if r == role
        ]
        if columns:
            effects[role] = torch.stack(columns).mean(0).tolist()
    return effects


def _scores(scores: EditScores) -> Scores:
    return Scores(new=scores.new.tolist(), true=scores.true.tolist(), top=scores.top.tolist())


def _side(scores: EditScores) -> SideEffects:
    def listed(values: Tensor) -> list[float | None]:
        return [None if isnan(value) else value for value in values.tolist()]

    return SideEffects(
        paraphrase=listed(scores.paraphrase),
        neighbour=listed(scores.neighbour),
        neighbour_top=listed(scores.neighbour_top),
        essence=scores.essence.tolist(),
    )
