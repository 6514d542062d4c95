"""The survey: constructed illusions, the map, weights, distortion, random MLPs, shares, page."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from helpers_studies import block_of
from subspacelens import (
    PairSet,
    Site,
    SiteError,
    TaskError,
    capture,
    capture_task,
    load_model,
    pairs_task,
)
from subspacelens.core.errors import ResultError
from subspacelens.core.geometry import Split
from subspacelens.core.records import Estimate
from subspacelens.engine.patches import SubspacePatch
from subspacelens.measure.effects import drops_of
from subspacelens.measure.splits import exact_split
from subspacelens.report.survey_page import markdown, reading, render_survey, svg, write_survey
from subspacelens.studies import prevalence as prevalence_module
from subspacelens.studies.made import Made
from subspacelens.studies.prevalence import prevalence
from subspacelens.survey import IllusionMap, illusion_map
from subspacelens.survey.construct import best_angle, constructions, random_write, sensed, targets
from subspacelens.survey.das_sites import Share, das_grid, das_sites
from subspacelens.survey.distortion import distortion, r_squared, separators
from subspacelens.survey.random_mlp import random_mlp
from subspacelens.survey.weights import weight_facts
from subspacelens.sweep import TaskSpec
from subspacelens.tasks.pairset import Task

SITE, AFTER = Site(1, "mlp_act", "END"), Site(1, "resid_post", "END")


@pytest.fixture(scope="module")
def lens(place):
    return load_model(place / "model", device="cpu")


@pytest.fixture(scope="module")
def task(lens, place):
    return pairs_task(lens.tokenizer, place / "pairs.jsonl")


@pytest.fixture(scope="module")
def illusions(lens, task):
    return illusion_map(lens, task, ["END", "NOUN"], pairs=24)


def random_case(m: int = 1):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    feature = torch.randn(m, 20, generator=generator, dtype=torch.float64)
    target = torch.randn(m, 6, generator=generator, dtype=torch.float64)
    split = Split.of(weight)
    return weight, split, feature, target, constructions(weight, split, feature, target)


@pytest.mark.parametrize("m", [1, 4])
def test_the_reading_is_disconnected_and_the_writing_connected(m):
    weight, split, _, _, built = random_case(m)
    for construction in built.values():
        assert construction.read.shape == (m, 20) and construction.angle.shape == (m,)
        torch.testing.assert_close(weight @ construction.read.T, torch.zeros(6, m).double())
        torch.testing.assert_close(split.row(construction.write.T), construction.write.T)
        for unit in (construction.read, construction.write, construction.direction):
            torch.testing.assert_close(unit.norm(dim=1), torch.ones(m).double())


def test_the_pseudoinverse_writes_t_alone_and_the_transpose_most_along_it():
    weight, split, _, target, built = random_case()
    written = {name: (weight @ construction.write[0]) for name, construction in built.items()}
    t = target[0] / target[0].norm()
    alone = written["pseudoinverse"]
    torch.testing.assert_close(alone, (alone @ t) * t)
    most = float(written["transpose"] @ t)
    others = random_write(split, 200, torch.Generator().manual_seed(0))
    assert most > float((others @ weight.T @ t).max()) and most > float(alone @ t) > 0


def test_the_best_angle_is_that_of_a_search():
    _, _, feature, _, built = random_case()
    transpose = built["transpose"]
    degrees = torch.arange(0, 180, 0.25).double().deg2rad()[:, None]
    v = degrees.cos() * transpose.read + degrees.sin() * transpose.write
    written = (v @ feature[0]) * degrees.sin()[:, 0]
    assert float(transpose.angle) == pytest.approx(float(degrees[written.argmax(), 0]), abs=0.01)


def test_for_a_dormant_writing_the_best_angle_is_45_degrees():
    read, write = torch.eye(3, dtype=torch.float64)[:2, None]
    angle = best_angle(read, write, torch.tensor([[2.0, 0.0, 5.0]]).double())
    assert float(angle.rad2deg()) == pytest.approx(45)


def test_the_map_is_the_effect_of_subspace_patches(lens, task, illusions):
    """One site again, by the library's own patches; the connected part is the audit's row part."""
    train, test = (capture(lens, part[:24], [SITE, AFTER]) for part in (task.train, task.test))
    weight = lens.map.writer(SITE).double()
    split = Split.of(weight.float())
    feature, replay = sensed(train.at(SITE)), test.at(SITE)
    for name, target in targets(train.at(AFTER)).items():
        for writing, built in constructions(weight, split, feature, target).items():
            basis = built.direction.T
            row = exact_split(lens, SITE, basis, centred=False).unit_row
            here = illusions.at(1, "END").illusions[f"{writing} of {name}"]
            for expected, columns in ((here.effect, basis), (here.connected, row)):
                delta = SubspacePatch(columns).delta(test.base[SITE], test.source[SITE])
                drop = drops_of(replay, delta)
                fldd = float(drop.sum() / replay.clean.logit_diff.double().sum())
                assert expected.value == pytest.approx(fldd, abs=1e-4)


def test_the_target_moves_the_answer_as_the_feature_does(lens, task):
    """A small step along the gradient target lowers the mean logit difference of every pair's
    class, so its sign follows z."""
    train = capture(lens, task.train[:24], [SITE, AFTER])
    t = targets(train.at(AFTER))["gradient"]
    sign = torch.tensor([pair.z[1] - pair.z[0] for pair in train.pairs.pairs])[:, None]
    delta = (sign * 1e-2 * t / t.norm()).float()
    drop = drops_of(train.at(AFTER), delta)
    assert drop.mean() > 0


def test_without_classes_each_pair_has_directions_of_its_own(lens, task):
    def bare(part: PairSet) -> PairSet:
        return PairSet(part.name, part.split, tuple(replace(p, z=None) for p in part.pairs))

    alone = Task("bare", bare(task.train), bare(task.test))
    illusions = illusion_map(lens, alone, ["END"], layers=[1], pairs=12)
    assert not illusions.one_for_all and illusions.sites[0].sensed is None
    test = capture(lens, alone.test[:12], [SITE, AFTER])
    assert sensed(test.at(SITE), one_for_all=False).shape == (12, 56)
    assert targets(test.at(AFTER), one_for_all=False)["gradient"].shape == (12, 32)


def test_a_map_is_read_back_and_a_damaged_one_refused(illusions, tmp_path):
    illusions.save(tmp_path / "map.json")
    assert IllusionMap.load(tmp_path / "map.json") == illusions
    (tmp_path / "map.json").write_text('{"schema": "other"}')
    with pytest.raises(ResultError, match=r"not a subspacelens.illusions/1 record"):
        IllusionMap.load(tmp_path / "map.json")
    with pytest.raises(SiteError, match="L9"):
        illusions.at(9, "END")


def test_labels_and_sites_that_are_not_there_are_refused(lens, task):
    with pytest.raises(TaskError, match="no label"):
        illusion_map(lens, task, ["S9"], pairs=4)
    with pytest.raises(TaskError, match="no label to map"):
        illusion_map(lens, task, [])
    with pytest.raises(SiteError, match="layers 0 to 3"):
        illusion_map(lens, task, ["END"], layers=[4], pairs=4)


@pytest.mark.parametrize(
    ("illusion", "whole", "connected", "works"),
    [
        (0.3, 0.05, 0.02, True),
        (0.3, -0.12, 0.02, False),
        (0.3, 0.05, 0.11, False),
        (0.14, 0.0, 0.0, False),
    ],
)
def test_an_illusion_works_where_neither_the_whole_nor_the_connected_part_does(
    illusions, illusion, whole, connected, works
):
    site = illusions.sites[0]
    one = next(iter(site.illusions.values())).model_copy(
        update={"effect": Estimate(value=illusion), "connected": Estimate(value=connected)}
    )
    case = site.model_copy(
        update={"whole": Estimate(value=whole), "illusions": {"transpose of gradient": one}}
    )
    assert case.works is works


def test_singular_values_ranks_and_kernels_are_those_of_the_weights(lens):
    copied = copy.deepcopy(lens)
    down = copied.map.blocks[2].down_proj
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(down.module.weight, full_matrices=False)
        s[-2:] = 0
        down.module.weight.copy_(u * s @ vh)
    facts = weight_facts(copied)
    assert [(f.down.rank, f.down.kernel) for f in facts] == [(32, 24), (32, 24), (30, 26), (32, 24)]
    assert [up.name for up in facts[0].up] == ["gate_proj", "up_proj"]
    expected = np.linalg.svd(facts_weight(copied, 0), compute_uv=False)
    assert facts[0].down.singular_values[0] == pytest.approx(expected.min(), rel=1e-5)
    assert facts[0].down.singular_values[-1] == pytest.approx(expected.max(), rel=1e-5)


def facts_weight(lens, layer: int) -> np.ndarray:
    return lens.map.blocks[layer].down_proj.module.weight.numpy()


def test_products_of_differences_agree_where_nothing_is_distorted():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=generator).double()
    turned = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())[0]
    other = torch.randn(200, 8, generator=generator).double()
    shifted = (x @ turned) * 3 + 7
    assert r_squared(x @ x.T, shifted @ shifted.T, generator) == pytest.approx(1)
    assert r_squared(x @ x.T, other @ other.T, generator) < 0.05


def test_separators_transfer_where_nothing_is_distorted_and_not_to_noise():
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 600, 60, generator=generator).double()
    same = separators(x @ x.T, 5 * x @ x.T, seed=0)
    assert same.fitted.low > 0.99 and same.shuffled.value < 0.65
    assert same.held_out == same.before and same.before.value > 0.8
    noise = separators(x @ x.T, other @ other.T, seed=0)
    assert 0.4 < noise.held_out.value < 0.6 < noise.before.value


def test_distortion_is_measured_at_every_layer(lens):
    from subspacelens.engine.text import Corpus

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 18, (60, 20), generator=generator).tolist()
    distortions = distortion(lens, Corpus("noise", tuple(map(tuple, ids))), tokens=300)
    assert [each.layer for each in distortions] == [0, 1, 2, 3]
    for each in distortions:
        assert each.before == ["gate_proj", "up_proj"] and set(each.alone) == set(each.before)
        assert 0 <= each.r2.low <= each.r2.high <= 1 and 0 <= each.transfer.held_out.value <= 1


def test_random_mlps_are_random_and_leave_the_model_alone(lens, task):
    before = {name: p.clone() for name, p in lens.model.named_parameters()}
    rows = random_mlp(lens, task, SITE, seeds=2, steps=4, pairs=12)
    assert [each.weights for each in rows] == ["gaussian", "shuffled"]
    assert rows == random_mlp(lens, task, SITE, seeds=2, steps=4, pairs=12)
    for each in rows:
        assert each.direction.low <= each.direction.value <= each.direction.high
        assert 0 < each.null_share.value < 1
    assert all(torch.equal(p, before[name]) for name, p in lens.model.named_parameters())
    whole = capture_task(lens, Task("t", task.train[:4], task.test[:12]), [SITE]).test
    drop = drops_of(whole.at(SITE), whole.difference(SITE))
    assert rows[0].real_whole == pytest.approx(
        drop.sum() / whole.clean.logit_diff.double().sum().item(), abs=1e-4
    )
    with pytest.raises(SiteError, match="mlp_act"):
        random_mlp(lens, task, AFTER)


def test_shares_have_intervals_over_layers():
    once = Share.of({(layer, "END"): layer < 3 for layer in range(10)})
    assert (once.count, once.total, once.estimate.value) == (3, 10, 0.3)
    assert 0 <= once.estimate.low < 0.2 and 0.5 < once.estimate.high < 0.75
    labels = ("S2", "END", "IO")
    often = Share.of({(layer, label): layer < 3 for layer in range(10) for label in labels})
    assert (often.count, often.total) == (9, 30)
    assert often.estimate.model_dump() == pytest.approx(once.estimate.model_dump())
    none = Share.of({(layer, "END"): False for layer in range(10)})
    assert (none.estimate.low, none.estimate.high) == (0, pytest.approx(0.278, abs=1e-3))
    assert Share.of({}).estimate.value is None


def test_only_the_sites_of_this_sweep_are_shown_though_the_store_holds_others(
    lens, task, place, tmp_path
):
    def sites(steps: int, folder: str):
        grid = das_grid(
            str(place / "model"), TaskSpec(name=str(place / "pairs.jsonl")), ["END"], pairs=8,
            steps=steps,
        )  # fmt: skip
        grid = grid.model_copy(update={"sites": ("L1.mlp_act@END",), "threads": 1})
        return das_sites(lens, task, grid, tmp_path / folder, backend="serial")

    alone, _ = sites(2, "alone")
    other, _ = sites(9, "shared")
    assert alone != other
    assert sites(2, "shared")[0] == alone and sites(9, "shared")[0] == other


def test_another_fit_is_told_apart_from_das(lens, task, place, everything, tmp_path):
    grid = das_grid(
        str(place / "model"), TaskSpec(name=str(place / "pairs.jsonl")), ["END"], pairs=16,
        steps=3, fits=["das", "mean-difference"],
    )  # fmt: skip
    sites, failed = das_sites(lens, task, grid, tmp_path, backend="serial")
    assert not failed and [each.fit for each in sites] == ["das"] * 4 + ["mean-difference"] * 4
    assert sites[:4] != [each.model_copy(update={"fit": "das"}) for each in sites[4:]]
    page = render_survey(everything.model_copy(update={"das": sites}))
    for name in ("DAS", "mean-difference"):
        assert f">{name} at every MLP<" in page and f"was fitted by {name} and" in page
    only = render_survey(everything)
    assert "mean-difference at every MLP" not in only and ">DAS at every MLP<" in only


@pytest.fixture(scope="module")
def everything(lens, task, place, tmp_path_factory):
    """In this process: what worker processes do is proven with the sweep."""
    folder = tmp_path_factory.mktemp("prevalence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prevalence_module, "das_sites", partial(das_sites, backend="serial"))
        return prevalence(
            lens, task, ["END"], parts=("promises", "weights", "random", "das"),
            model=str(place / "model"), task_spec=TaskSpec(name=str(place / "pairs.jsonl")),
            directory=folder, pairs=16, steps=3, seeds=2,
        )  # fmt: skip


def test_the_study_has_every_part_and_das_at_every_mlp(everything):
    assert [(site.layer, site.label) for site in everything.das] == [(i, "END") for i in range(4)]
    assert len(everything.weights) == 4 and len(everything.random_mlps) == 2
    for site in everything.das:
        assert site.verdict in ("illusory", "faithful", "undetermined")
        assert 0 <= site.cos_null <= 1 and 0 <= site.cos_row <= 1


def test_its_sections_of_the_docs(everything, tmp_path):
    write_survey(everything.model_copy(update={"made": Made.now("asked")}), tmp_path)
    text = " ".join(block_of("prevalence", tmp_path).split())
    assert f"fitted by DAS at each of the {len(everything.das)} sites" in text
    assert len(everything.promises) == len(everything.illusions.sites)
    assert "rank correlation" in text and "two draws of each kind" in text
    assert "## DAS" not in block_of("prevalence-facts", tmp_path)


def test_the_page_is_one_file_that_asks_for_nothing(everything, tmp_path):
    model = everything.illusions.model.model_copy(update={"id": "<script>alert(1)</script>"})
    hostile = everything.model_copy(
        update={"illusions": everything.illusions.model_copy(update={"model": model})}
    )
    page = write_survey(hostile, tmp_path).read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page and "src=" not in page.split("<script>")[0]
    assert json.loads((tmp_path / "survey.json").read_text())["schema"]
    assert (tmp_path / "illusions.svg").read_text().startswith("<svg")


def test_the_map_in_words_and_as_a_table(illusions):
    assert markdown(illusions).count("\n") == 2 + 8
    assert svg(illusions).count("<rect") == 8 * 4
    site = illusions.at(1, "END")
    strong = site.model_copy(update={"whole": Estimate(value=0.0)})
    one = next(iter(strong.illusions.values())).model_copy(
        update={"effect": Estimate(value=0.5), "connected": Estimate(value=0.0)}
    )
    strong = strong.model_copy(update={"illusions": {"transpose of gradient": one}})
    changed = illusions.model_copy(update={"sites": [strong]})
    assert "work at layer 1:" in reading(changed, "END")
    weak = strong.model_copy(update={"whole": Estimate(value=0.4)})
    assert "No layer" in reading(illusions.model_copy(update={"sites": [weak]}), "END")
