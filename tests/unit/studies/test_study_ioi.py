"""The whole IOI study on tiny random models, and the preset of the paper's circuit in GPT-2."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from scipy.stats import DegenerateDataWarning

from helpers_models import hub_folder
from helpers_studies import block_of
from subspacelens import Site, load_model
from subspacelens.certify import centred
from subspacelens.cli import main
from subspacelens.core.errors import ModelError, TaskError
from subspacelens.measure.readers import reader_matrix
from subspacelens.measure.splits import exact_split
from subspacelens.report.ioi_page import write_ioi
from subspacelens.studies.ioi import IoiRecord, reproduce_ioi
from subspacelens.studies.ioi import study as study_module
from subspacelens.studies.ioi.data import study_data
from subspacelens.studies.ioi.heads import query_maps
from subspacelens.studies.ioi.plan import PRESETS, Sizes, preset_for

TINY = Sizes(
    map=4, train=12, test=16, held_out=8, heads=6, fresh=24,
    steps=3, control_steps=2, seeds=2, random_mlps=1,
)  # fmt: skip
SPECIAL = dict(bos_token_id=0, eos_token_id=1)
SMALL_GPT2 = SPECIAL | dict(n_embd=48, n_layer=12, n_head=12, n_positions=256)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory) -> str:
    return hub_folder(tmp_path_factory.mktemp("gpt2"), "gpt2", **SMALL_GPT2)


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return load_model(gpt2_folder)


@pytest.fixture(scope="module")
def by_preset(gpt2_folder, tmp_path_factory):
    """What the command writes for a GPT-2 in a folder."""
    out = tmp_path_factory.mktemp("study")
    arguments = ["--model", gpt2_folder, "--preset", "gpt2", "--quick", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        patch.setattr(study_module, "QUICK", TINY)
        patch.setattr("sys.argv", ["subspacelens", "reproduce", "ioi", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return out


def test_the_command_writes_what_it_says(by_preset):
    record = json.loads((by_preset / "ioi.json").read_text())
    assert record["schema"] == "subspacelens.ioi/1"
    assert {"table1", "circuit", "controls", "generalisation"} <= record.keys()
    for row in record["table1"]:
        assert {"site", "patch", "fldd", "iia", "paper"} <= row.keys()
        assert row["fldd"].keys() == row["iia"].keys() == {"value", "low", "high"}
    assert record["command"].startswith("subspacelens reproduce ioi --model")
    assert IoiRecord.model_validate(record).table1[0].pairs == TINY.fresh
    page = (by_preset / "report.html").read_text()
    assert "What agrees with the paper" in page and "<script src" not in page
    assert "## What agrees with the paper" in (by_preset / "ioi.md").read_text()
    assert (by_preset / "map.json").exists()
    for place in record["circuit"]["places"]:
        assert (by_preset / "audits/das" / place["bottleneck"] / "audit.json").exists()


def test_its_section_of_the_docs(by_preset):
    text = block_of("ioi", by_preset)
    record = IoiRecord.model_validate_json((by_preset / "ioi.json").read_bytes())
    assert record.made is not None and record.made.machine in " ".join(text.split())
    for promise in record.promises:
        assert text.count(f"| `{promise.site}` |") == 2
    assert [p.site for p in record.promises] == [p.site for p in record.refined]
    assert "−.08" in text and "1.41" in text


def test_the_gpt2_preset_looks_where_the_paper_does(by_preset):
    record = IoiRecord.model_validate_json((by_preset / "ioi.json").read_bytes())
    assert record.preset == "gpt2"
    (place,) = record.circuit.places
    assert (place.label, place.bottleneck, place.mlps) == (
        "END",
        "L8.resid_post@END",
        ["L8.mlp_act@END"],
    )
    assert record.circuit.name_movers == ["9.6", "9.9", "10.0"]
    assert place.readers == [
        f"L{layer}.head {head} queries" for layer, head in ((9, 6), (9, 9), (10, 0))
    ]
    papers = {row.patch: row.paper for row in record.table1}
    assert papers["v_MLP"] is not None and (papers["v_MLP"].fldd, papers["v_MLP"].iia) == (
        0.467,
        0.042,
    )
    assert papers["v_resid"] is not None and papers["v_resid"].fldd == 1.407


def test_the_preset_begins_every_prompt_with_bos(gpt2):
    data = study_data(gpt2, TINY, bos=True, seed=0)
    for pairs in (data.task.train, data.task.test, data.fresh, *data.variants.values()):
        for pair in pairs:
            assert pair.base.ids[0] == pair.source.ids[0] == gpt2.tokenizer.bos_token_id
            assert pair.base.ids[pair.base.columns["IO"]] == pair.answer


def test_layer_norm_centres_both_splits(gpt2):
    """One dimension of what an MLP writes, and of what a head reads, is lost to the mean."""
    (site,) = PRESETS["gpt2"].mlps
    assert centred(gpt2)
    basis = torch.eye(192)[:, :1]
    assert exact_split(gpt2, site, basis, centred=True).split.rank == 47
    pairs = study_data(gpt2, TINY, bos=True, seed=0).task.train
    end = Site(8, "resid_post", "END")
    for share in query_maps(gpt2, pairs, end, PRESETS["gpt2"].name_movers):
        matrix = reader_matrix(share)
        assert matrix.shape == (4, 48)
        assert float(matrix.sum(1).abs().max()) < 1e-5 * float(matrix.abs().sum(1).max())


def test_presets(gpt2, tmp_path):
    assert preset_for(gpt2, None) is None
    assert preset_for(gpt2, "gpt2") is PRESETS["gpt2"]
    named = type(gpt2)(gpt2.model, gpt2.tokenizer, "gpt2", gpt2.map)
    assert preset_for(named, None) is PRESETS["gpt2"]
    with pytest.raises(ModelError, match="unknown preset 'gpt3': one of gpt2"):
        preset_for(gpt2, "gpt3")
    small = load_model(hub_folder(tmp_path, "gpt2", **SPECIAL))
    with pytest.raises(ModelError, match=r"needs 11 layers of 10 heads; .* has 4 of 4"):
        preset_for(small, "gpt2")
    small.tokenizer.bos_token = None
    with pytest.raises(TaskError, match="the tokenizer has none"):
        study_data(small, TINY, bos=True, seed=0)


@pytest.fixture(scope="module")
def searched(tiny_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        return reproduce_ioi(load_model(tiny_folder), sizes=TINY)


def test_without_a_preset_the_circuit_is_searched_for(searched):
    record = searched.record
    assert record.preset is None
    assert [place.label for place in record.circuit.places] == ["S2", "END"]
    for row in record.table1:
        assert row.paper is None or row.site.endswith("@END")
    patches = {row.patch for row in record.table1}
    assert {"full", "v_MLP", "v_MLP row", "v_MLP null", "v_resid", "v_resid along readers",
            "v_resid null", "v_grad", "v_mean"} <= patches  # fmt: skip
    assert {row.control for row in record.controls} >= {
        "shuffled labels", "random-weight MLP", "model of random weights", "random directions",
        "constructed illusion towards v_resid",
    }  # fmt: skip
    kinds = [item.kind for item in record.generalisation]
    assert kinds[0] == "held-out templates" and len(kinds) == 5
    assert {v.direction for v in record.verdicts} == {"das", "constructed"}
    assert {c.pairs for c in record.contrasts} == {"fresh pairs", *kinds}


def test_names_in_the_page_are_escaped(searched, tmp_path):
    record = searched.record
    odd = record.model.model_copy(update={"id": "<img src=x>"})
    changed = type(searched)(
        record.model_copy(update={"model": odd}), searched.map, searched.audits
    )
    page = write_ioi(changed, tmp_path).read_text()
    assert "<img src=x>" not in page and "&lt;img src=x&gt;" in page
