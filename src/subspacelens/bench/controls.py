"""Controls on the model as it is: illusions built by hand, and fits where the feature is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..audit import judge
from ..core.progress import track
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.task_capture import capture_task
from ..fit import das, mean_difference
from ..fit.subspace import Subspace, made_by
from ..model.lens import LensModel
from ..survey.construct import constructions, sensed, targets, written_through
from ..survey.residual import residual_illusions
from ..tasks import ioi

BUILT = (
    "L16.mlp_act@S2", "L18.mlp_act@S2", "L19.mlp_act@S2", "L20.mlp_act@S2", "L19.mlp_act@END",
    "L22.mlp_act@END",
)  # fmt: skip
"""MLPs of SmolLM2 between those that write IOI's feature and those that read it, and that do little
themselves (`subspacelens survey`)."""
FOUND = ("L17.resid_post@S2", "L18.resid_post@S2", "L20.resid_post@END", "L21.resid_post@END")
"""The residual stream behind the attention that writes the feature."""
PAIRS = 128


def controls(lens: LensModel) -> list[dict]:
    """Verdicts on IOI: of an illusion at each of `BUILT` (arXiv 2311.17030 §3), and at each of
    `FOUND` of what DAS finds, of the difference of the class means, and of the illusions that can
    be built there (`residual_illusions`). Nothing is planted here, so that `expected` is what the
    literature says and not the truth by construction."""
    sites = [Site.parse(text) for text in (*BUILT, *FOUND)]
    behind = [_after(site) for site in sites]
    task = ioi(lens.tokenizer, train=PAIRS, test=PAIRS, held_out=0)
    captures = capture_task(lens, task, [*sites, *behind])
    rows = []
    total = len(BUILT) + 6 * len(FOUND)
    for expected, subspace in track(_subspaces(captures.train), "controls", total=total):
        judgement = judge(lens, captures, subspace, budget="fast")
        rows.append(
            {
                "site": str(subspace.site),
                "kind": subspace.fit["method"],
                "expected": expected,
                "verdict": judgement.verdict.label,
                "score": judgement.verdict.score,
                "fldd": judgement.effects["subspace"].fldd.value,
                "tests": {name: test.value for name, test in judgement.tests.items()},
            }
        )
    return rows


def _subspaces(train: Capture) -> Iterator[tuple[str, Subspace]]:
    lens = train.lens
    for site in map(Site.parse, BUILT):
        weight, split = written_through(lens, site)
        target = targets(train.at(_after(site)))["gradient"]
        feature = sensed(train.at(site))
        built = constructions(weight, split, feature, target)["transpose"]
        fit = {"method": "constructed-illusion"}
        yield "illusory", made_by(lens, site, built.direction.T, train.pairs.sha256, fit)
    for site in map(Site.parse, FOUND):
        yield "faithful", das(lens, train, site)
        yield "faithful", mean_difference(lens, train, site)
        for lacks, direction in residual_illusions(train.at(site)).items():
            fit = {"method": f"residual-illusion, {lacks}"}
            yield "illusory", made_by(lens, site, direction[:, None], train.pairs.sha256, fit)


def _after(site: Site) -> Site:
    return replace(site, stream="resid_post")
