"""Factual recall (arXiv 2311.17030 §5): one direction a pair, and what it does beyond its pair.

For ordered pairs of known facts of one relation, a unit direction is fitted at the subject's last
token so that its patch makes the model say the source's object. Every number here is a plain
measurement of the patched or edited model; `studies/facts_summary.py` turns them into tables.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..certify import centred, require_streams
from ..core.errors import TaskError
from ..core.geometry import Split, haar
from ..core.kept import Kept
from ..core.records import ModelRecord
from ..core.site import Site
from ..edit import SecondMoment, edit_from_patch, second_moments, variance
from ..engine.capture import Capture, capture
from ..engine.patches import Full, PairwisePatch, Patch
from ..engine.recall import known_facts, recall
from ..engine.replay import Replay
from ..engine.text import Corpus
from ..fit.per_pair import PAPER, ClosedForm, PairDirections, Recipe, per_pair
from ..model.lens import LensModel
from ..tasks.facts import SUBJECT, Fact, fact_pairs, pair_set
from ..tasks.pairset import PairSet
from .facts_record import FactsRecord, LayerRecord, PairRecord, Shape, SharedRecord, Tried
from .facts_shared import shared_subspaces
from .promised import Slopes
from .trying import tried, tried_all, tried_edits

RANDOM_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class FactsPlan:
    """What the study does. `per_relation` pairs of each relation; directions at `layers` of
    `mlp_act` and `resid_layers` of `resid_post`; shared subspaces of `shared_dim` dimensions at
    `shared_layers`."""

    layers: tuple[int, ...]
    resid_layers: tuple[int, ...] = ()
    shared_layers: tuple[int, ...] = ()
    shared_dim: int = 8
    per_relation: int = 5
    recipe: ClosedForm | Recipe = field(default_factory=ClosedForm)
    seed: int = 0


def facts_plan(
    blocks: int, *, step: int = 3, seed: int = 0, paper: bool = False, quick: bool = False
) -> FactsPlan:
    """The plan of `reproduce facts` for a model of so many blocks: every `step`-th layer. `paper`:
    its fit, 600 steps of 8 runs a pair. `quick`: three layers, two pairs a relation."""
    if step < 1:
        raise TaskError(f"--step {step}: at least 1")
    layers = tuple(range(0, blocks, step))
    if quick:
        few = tuple(dict.fromkeys((0, blocks // 6, blocks // 2)))
        return FactsPlan(layers=few, per_relation=2, recipe=ClosedForm(steps=6), seed=seed)
    chosen = layers[len(layers) // 5], layers[len(layers) // 2]
    return FactsPlan(
        layers=layers,
        resid_layers=chosen,
        shared_layers=chosen,
        recipe=PAPER if paper else ClosedForm(),
        seed=seed,
    )


def run_facts(
    lens: LensModel,
    facts: Sequence[Fact],
    corpus: Corpus,
    plan: FactsPlan,
    command: str = "",
    kept: Kept | None = None,
) -> FactsRecord:
    """The whole study on the facts that the model knows; what `kept` has of it is not done again.
    Raises `TaskError` where it knows too few."""
    kept = kept or Kept()
    start = time.perf_counter()
    known = known_facts(lens, facts)
    if not known:
        raise TaskError(f"{lens.id} knows none of the {len(facts)} facts")
    chosen = fact_pairs(lens.tokenizer, known, per_relation=plan.per_relation, seed=plan.seed)
    own = pair_set(lens.tokenizer, chosen)
    sites = [Site(layer, "mlp_act", SUBJECT) for layer in plan.layers]
    resid = [Site(layer, "resid_post", SUBJECT) for layer in plan.resid_layers]
    whole = [Site(layer, "resid_post", SUBJECT) for layer in plan.layers]
    require_streams(lens, [*sites, *whole])
    captured = capture(lens, own, [*sites, *resid, *whole], shifted=True)
    paraphrases = paraphrased(lens, chosen)
    again = capture(lens, paraphrases.pairs, [*sites, *resid], shifted=True)
    moments = second_moments(lens, plan.layers, corpus)

    def measured(site: Site) -> LayerRecord:
        return measure(captured, again, paraphrases, site, moments.get(site.layer), plan)

    layers = [
        kept.part(str(site), LayerRecord, partial(measured, site)) for site in [*sites, *resid]
    ]
    components = {str(site.layer): tried(captured.at(site), Full()) for site in whole}
    shared = kept.part(
        "shared",
        list[SharedRecord],
        lambda: shared_subspaces(
            lens, known, plan.shared_layers, dim=plan.shared_dim, seed=plan.seed
        ),
    )
    return FactsRecord(
        model=ModelRecord(
            id=lens.id,
            weights_sha256=lens.weights_sha256,
            dtype=str(lens.dtype).removeprefix("torch."),
        ),
        facts=len(facts),
        known=len(known),
        pairs=[PairRecord.of(base, source) for base, source in chosen],
        units=own.units.of_pair.tolist(),
        clean=captured.clean.logit_diff.double().tolist(),
        paraphrase_of=paraphrases.pair.tolist(),
        paraphrase_known=paraphrases.known.tolist(),
        layers=layers,
        residual=components,
        shared=shared,
        corpus=corpus.name,
        recipe=asdict(plan.recipe) | {"seed": plan.seed},
        seconds=time.perf_counter() - start + kept.earlier,
        command=command,
    )


@dataclass(frozen=True)
class Paraphrases:
    """Paraphrased pairs: `pair` (m,) is the pair that each says again, `known` (m,) whether the
    model gives the right object for base and source in those words too."""

    pairs: PairSet
    pair: Tensor
    known: Tensor


def paraphrased(lens: LensModel, chosen: Sequence[tuple[Fact, Fact]]) -> Paraphrases:
    """Every paraphrase that base and source of a pair both have; the same number means the same
    words in the embedded facts."""
    sets: list[PairSet] = []
    owner: list[int] = []
    for number, (base, source) in enumerate(chosen):
        for which in range(min(len(base.paraphrases), len(source.paraphrases))):
            sets.append(pair_set(lens.tokenizer, [(base, source)], paraphrase=which))
            owner.append(number)
    if not sets:
        raise TaskError(
            "no two facts of a pair have paraphrases, by which a direction is judged beyond its "
            "own pair: give 'paraphrase_prompts'"
        )
    pairs = PairSet("facts", "paraphrases", tuple(part.pairs[0] for part in sets))
    right = torch.tensor([(pair.answer, pair.target) for pair in pairs.pairs])
    tops = [
        recall(lens, prompts, right, "paraphrases").top
        for prompts in ([p.base for p in pairs.pairs], [p.source for p in pairs.pairs])
    ]
    known = (tops[0] == right[:, 0]) & (tops[1] == right[:, 1])
    return Paraphrases(pairs, torch.tensor(owner), known)


def measure(
    captured: Capture,
    again: Capture,
    paraphrases: Paraphrases,
    site: Site,
    moment: SecondMoment | None,
    plan: FactsPlan,
) -> LayerRecord:
    """Fits a direction for each pair at one site and tries it, its parts and its edit."""
    lens, replay, words = captured.lens, captured.at(site), again.at(site)
    fit = per_pair(lens, captured, site, recipe=plan.recipe, seed=plan.seed)
    v = fit.directions
    patches: dict[str, Patch] = {"v": PairwisePatch(v, v), "full": Full()}
    writer, shape = replay.writer, None
    if writer is not None:
        split = Split.of(writer, centred=centred(lens))
        patches |= parts(v, split)
        shape = shape_of(fit, replay.difference, split, plan.seed)
    results = tried_all(replay, patches)
    edit_variance = None
    if writer is not None and moment is not None:
        edits = edit_from_patch(writer, site.layer, v, replay.base, replay.source, moment)
        results["edit"] = tried_edits(replay, edits)
        edit_variance = variance(torch.stack([e.b for e in edits]), moment).tolist()
    return LayerRecord(
        layer=site.layer,
        stream=site.stream,
        patches=results,
        shape=shape,
        edit_variance=edit_variance,
        condition=moment.condition if moment and writer is not None else None,
        tokens=moment.tokens if moment and writer is not None else None,
        shrinkage=moment.shrinkage if moment and writer is not None else None,
        paraphrases={
            "v": tried(words, PairwisePatch(v[paraphrases.pair], v[paraphrases.pair])),
            "full": tried(words, Full()),
        },
        others=others(replay, v),
        slopes=Slopes.of(replay.difference, replay.gradients()),
    )


def parts(v: Tensor, split: Split) -> dict[str, Patch]:
    """The row and null part of every direction, (n, d): of unit length, and as readers of v."""
    row = split.row(v.T.cpu()).T
    null = v.double().cpu() - row

    def unit(x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=-1)

    return {
        "row": PairwisePatch(unit(row), unit(row)),
        "null": PairwisePatch(unit(null), unit(null)),
        "read_row": PairwisePatch(row, v),
        "read_null": PairwisePatch(null, v),
    }


def shape_of(fit: PairDirections, difference: Tensor, split: Split, seed: int) -> Shape:
    """‖P_N v‖ and |cos(Δ, P_N v)| of every pair, and the means of both over random v."""
    v, delta = fit.directions.double().cpu(), difference.double().cpu()
    null = split.null(v.T).T
    generator = torch.Generator().manual_seed(seed)
    random = split.null(haar(v.shape[1], 1, RANDOM_DRAWS, generator)[..., 0].T).T

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(a, b, dim=-1).abs()

    return Shape(
        null_norm=null.norm(dim=-1).tolist(),
        cos_null=cosine(delta, null).tolist(),
        cos_row=cosine(delta, v - null).tolist(),
        random_null_norm=float(random.norm(dim=-1).mean()),
        random_cos_null=float(cosine(delta[:, None], random[None]).mean()),
    )


def others(replay: Replay, v: Tensor) -> Tried:
    """Every pair patched along the direction of another pair of its relation: the next one."""
    groups: dict[str, list[int]] = {}
    for number, pair in enumerate(replay.pairs.pairs):
        groups.setdefault(pair.template, []).append(number)
    following = torch.arange(len(v))
    for members in groups.values():
        for here, there in zip(members, members[1:] + members[:1], strict=True):
            following[here] = there
    moved = v[following]
    return tried(replay, PairwisePatch(moved, moved))
