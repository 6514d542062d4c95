"""`subspacelens patch`: whole components and saved subspaces, at several places at once."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGUFWriter

from subspacelens import load_audit

SITE = "L1.mlp_act@S2"


@pytest.fixture(scope="module")
def base(tiny_folder) -> tuple:
    return ("patch", "--model", tiny_folder, "--pairs", 16)


def test_several_places_are_patched_together(run, base, tmp_path):
    code, out, _ = run("fit", *base[1:], "--site", SITE, "--fit", "pca", "--out", tmp_path)
    assert code == 0
    file = tmp_path / SITE / "subspace.safetensors"
    code, out, err = run(*base, "--site", f"{SITE}={file}", "--site", "L2.attn_v.1@S2+END")
    assert code == 0, err
    for name in (SITE, "L2.attn_v.1@S2", "L2.attn_v.1@END", "all together", "interaction"):
        assert name in out
    assert "16 test pairs" in out and "unpatched source prompt" in out


def test_a_saved_subspace_goes_to_every_label_that_is_named(run, base, tmp_path):
    np.save(tmp_path / "direction.npy", np.eye(56)[3])
    code, out, err = run(*base, "--site", f"L1.mlp_act@S2:={tmp_path / 'direction.npy'}")
    assert code == 0, err
    assert "L1.mlp_act@S2:" in out and "interaction" not in out


def test_a_vector_is_added_where_it_is_said(run, base, tmp_path):
    file = tmp_path / "v.npy"
    np.save(file, np.random.default_rng(0).normal(size=(3, 32)))
    rows = {}
    for where in ("END", "S2+END", "*"):
        options = ("--operation", "add", "--alpha", 3, "--row", 1)
        code, out, err = run(*base, "--site", f"L1.resid_post@{where}={file}", *options)
        assert code == 0, err
        rows[where] = out
    assert "all together" in rows["S2+END"] and rows["*"] != rows["END"]
    code, out, err = run(
        *base, "--site", f"blocks.1.mlp.hook_post@END={tmp_path / 'w.npy'}", "--operation", "ablate"
    )
    assert code == 2 and "w.npy" in err
    np.save(tmp_path / "w.npy", np.eye(56)[:2])
    code, out, err = run(
        *base, "--site", f"blocks.1.mlp.hook_post@END={tmp_path / 'w.npy'}", "--operation", "ablate"
    )
    assert code == 0 and "16 test pairs" in out, err


def test_a_file_does_what_its_tool_does(run, base, tmp_path):
    writer = GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    writer.add_tensor("direction.1", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    where = f"L1.resid_post@*={tmp_path / 'v.gguf'}"
    one, other = (
        run(*base, "--site", where, "--operation", "own", "--alpha", alpha) for alpha in (1, 30)
    )
    assert one[0] == other[0] == 0 and one[1] != other[1], one[2]
    code, _, err = run(*base, "--site", where, "--operation", "own", "--value", 2)
    assert code == 2 and "add takes no value" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--operation", "multiply"), "one of interchange, add, ablate, own"),
        (("--value", 2), "give --operation own too"),
        (("--alpha", 2), "give --operation add too"),
        (("--operation", "add"), "name a file to add"),
    ],
)
def test_operations_without_what_they_need(run, base, options, says):
    code, _, err = run(*base, "--site", SITE, *options)
    assert code == 2 and says in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("L1.mlp_act@S2+S9", "no label 'S9'"),
        ("L1.attn_k.2@END", "key heads 0 to 1, each for 2 query heads, not 2"),
        ("L1.mlp_act@S2=nowhere.safetensors", "nowhere.safetensors"),
        ("L1.mlp_act@S2+", "a label is missing"),
        ("L1.mlp_act", "not of the form"),
    ],
)
def test_what_cannot_be_patched_is_one_line(run, base, site, says):
    code, _, err = run(*base, "--site", site)
    (line,) = [line for line in err.splitlines() if line.startswith("subspacelens: ")]
    assert code == 2 and says in line and "Traceback" not in err


def test_queries_and_keys_are_fitted_audited_and_mapped(run, base, tmp_path):
    sites = ("L1.attn_q@END", "L1.attn_k.1@S2")
    given = [part for site in sites for part in ("--site", site)]
    code, out, err = run("audit", *base[1:], *given, "--fit", "pca", "--out", tmp_path)
    assert code == 0, err
    for site in sites:
        record = load_audit(tmp_path / site / "audit.json")
        assert record.site == site and record.effects["subspace"].nats.value is not None
        assert record.effects["row"].nats.value is None
        elsewhere = "read by other tokens at once" in record.tests["path"].reading
        assert elsewhere == ("attn_k" in site)
    assert (tmp_path / "report.html").is_file()
    out = tmp_path / "map"
    code, _, err = run("map", *base[1:], "--stream", "attn_v", "--label", "S2", "--out", out)
    assert code == 0 and (out / "map.html").is_file(), err


def test_another_metric_is_a_column_more(run, base):
    code, out, err = run(
        *base, "--site", SITE, "--site", "L2.resid_post@END", "--metric", "target_rank"
    )
    assert code == 0, err
    assert "target_rank" in out and "interaction" in out and max(map(len, out.splitlines())) <= 80
    code, _, err = run(*base, "--site", SITE, "--metric", "unheard")
    assert code == 2 and "unknown metric 'unheard'" in err
