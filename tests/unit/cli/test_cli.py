"""The command line: what it writes, and one clear line with exit code 2 for bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from subspacelens import load_audit
from subspacelens.cli import main
from subspacelens.core.tensorfile import TensorFile
from subspacelens.fit import FITS
from subspacelens.fit.subspace import FORMAT


@pytest.fixture
def refused(run):
    def call(*args: object) -> str:
        code, _, err = run(*args)
        lines = [line for line in err.splitlines() if line.startswith("subspacelens: ")]
        assert code == 2 and len(lines) == 1, err
        assert "Traceback" not in err
        return lines[0]

    return call


SITE = "L1.mlp_act@S2"
SMALL = ("--pairs", 16, "--site", SITE)


@pytest.fixture(scope="module")
def audited(tiny_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--model", tiny_folder, *SMALL, "--fit", "pca", "--out", out]
        patch.setattr("sys.argv", ["subspacelens", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return out


def test_captures_are_kept_and_reused(run, tiny_folder, tmp_path, monkeypatch):
    kept = tmp_path / "captures"
    arguments = ("--model", tiny_folder, *SMALL, "--fit", "pca", "--captures", kept)
    assert run("fit", *arguments, "--out", tmp_path / "one")[0] == 0
    assert len(list(kept.glob("capture-*.safetensors"))) == 1
    monkeypatch.setattr("subspacelens.engine.store.capture", None)
    assert run("fit", *arguments, "--out", tmp_path / "two")[0] == 0
    one, two = (load_file(tmp_path / n / SITE / "subspace.safetensors") for n in ("one", "two"))
    assert torch.equal(one["basis"], two["basis"])


def test_audit_writes_results_that_can_be_read_back(audited, tiny_folder):
    record = load_audit(audited / SITE / "audit.json")
    assert record.site == SITE and record.model.id == tiny_folder
    assert set(record.effects) == {
        "full", "subspace", "row", "null", "read_row", "read_null", "random", "reversed",
    }  # fmt: skip
    assert record.no_op.nats.value == pytest.approx(0, abs=1e-4)
    assert record.task.test_pairs == 16 and record.command.startswith("subspacelens audit --model")
    raw = json.loads((audited / SITE / "audit.json").read_text())
    assert raw["schema"] == "subspacelens.audit/5"
    file = TensorFile.load(audited / SITE / "subspace.safetensors", FORMAT, "a subspace file")
    basis = file.tensors["basis"]
    assert file.facts["site"] == SITE
    assert basis.shape == (56, 1) and basis.dtype == torch.float32
    assert float(basis.norm()) == pytest.approx(1, abs=1e-6)
    assert (audited / "report.html").stat().st_size > 1e6


def test_report_is_drawn_again(run, audited):
    page = audited / "report.html"
    before = page.read_bytes()
    page.unlink()
    code, out, _ = run("report", audited)
    assert code == 0 and str(page) in out
    assert page.read_bytes() == before


def test_a_saved_subspace_is_audited_again_with_the_same_numbers(
    run, audited, tiny_folder, tmp_path
):
    file = audited / SITE / "subspace.safetensors"
    code, _, err = run(
        "audit", "--model", tiny_folder, "--pairs", 16, "--subspace", file, "--out", tmp_path
    )
    assert code == 0, err
    first, second = (load_audit(d / SITE / "audit.json") for d in (audited, tmp_path))
    assert first.effects == second.effects and first.tests == second.tests


@pytest.mark.parametrize("method", ["das", "mean-difference", "gradient", "probe", "pca"])
def test_fit_saves_only_the_subspace(run, tiny_folder, tmp_path, method):
    code, _, err = run("fit", "--model", tiny_folder, *SMALL, "--fit", method, "--out", tmp_path)
    assert code == 0, err
    assert [p.name for p in (tmp_path / SITE).iterdir()] == ["subspace.safetensors"]


def test_only_pairs_that_the_model_answers(run, tiny_folder, tmp_path):
    """A random model answers none of IOI, and only the pairs that it would of its own making."""
    line = ("--model", tiny_folder, *SMALL, "--fit", "pca", "--only-correct", "--out", tmp_path)
    code, _, err = run("fit", *line)
    assert code == 2 and "gives the right answer to no train pair" in err


def test_fits_lists_every_fit_with_its_options(run):
    code, out, _ = run("fits")
    assert code == 0
    for name, fit in FITS.items():
        assert f"│ {name} " in out
        assert all(f"{key}={value}" in out for key, value in fit.options.items())


def test_doctor_and_models(run, tiny_folder):
    code, out, _ = run("doctor", "--model", tiny_folder, "--site", SITE)
    assert code == 0 and SITE in out
    code, out, _ = run("models")
    assert code == 0 and "smollm2" in out


def test_unknown_model(refused, tmp_path):
    assert "no such file or folder" in refused("audit", "--model", "./no/where", *SMALL)
    assert "no such file" in refused("audit", "--model", tmp_path / "none.gguf", *SMALL)


def test_folder_without_weights(refused, tiny_folder, tmp_path):
    assert "no config.json" in refused("audit", "--model", tmp_path, *SMALL)
    shutil.copy(Path(tiny_folder) / "config.json", tmp_path)
    assert "no weights" in refused("audit", "--model", tmp_path, *SMALL)


def test_damaged_weights(refused, tiny_folder, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    assert str(folder) in refused("audit", "--model", folder, *SMALL)


def test_file_that_is_no_gguf(refused, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"nothing of the kind")
    assert "not a GGUF file" in refused("audit", "--model", file, *SMALL)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("L9.mlp_act@S2", "layers 0 to 3"),
        ("L1.mlp_hidden@S2", "site L1.mlp_hidden@S2: unknown stream 'mlp_hidden'"),
        ("L1.mlp_act@S9", "no label 'S9'"),
        ("L1.head_z.7@END", "heads 0 to 3"),
        ("L1.mlp_act.2@END", "has no heads"),
        ("1.mlp_act@END", "is no site: L18.mlp_act@S2"),
        ("L1.resid_post@S1", "--shifted"),
    ],
)
def test_bad_sites(refused, tiny_folder, tmp_path, site, message):
    line = refused("audit", "--model", tiny_folder, "--pairs", 8, "--site", site, "--out", tmp_path)
    assert message in line


def test_shifted_labels_are_allowed_when_asked_for(run, tiny_folder, tmp_path):
    code, _, err = run(
        "audit", "--model", tiny_folder, "--pairs", 8, "--site", "L1.resid_post@S1", "--shifted",
        "--fit", "pca", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err


def test_no_site_for_another_model(refused, tiny_folder, tmp_path):
    assert "--site" in refused("audit", "--model", tiny_folder, "--out", tmp_path)


def test_dimensions_that_do_not_fit(refused, tiny_folder, tmp_path):
    arguments = ("--model", tiny_folder, *SMALL, "--out", tmp_path)
    assert "56 wide" in refused("audit", *arguments, "--dim", 57)
    assert "--dim 0: a number of dimensions, or auto" in refused("audit", *arguments, "--dim", 0)


def test_bad_options(refused, tiny_folder, tmp_path):
    arguments = ("audit", "--model", tiny_folder, *SMALL, "--out", tmp_path)
    assert "not a size" in refused(*arguments, "--memory", "much")
    assert "unknown dtype" in refused(*arguments, "--dtype", "int3")
    assert "device 'warp'" in refused(*arguments, "--device", "warp")
    assert "at least one pair" in refused(*arguments, "--pairs", 0)
    assert "unknown task" in refused(*arguments, "--task", "chess")


def pair_line(**changes) -> str:
    line = {
        "base": "Then, Monica and Christine met. Christine gave it to",
        "source": "Then, Christine and Monica met. Christine gave it to",
        "answer": " Monica",
        "target": " Christine",
    }
    return json.dumps(line | changes)


def test_malformed_pairs(refused, tiny_folder, tmp_path):
    file = tmp_path / "pairs.jsonl"
    arguments = ("audit", "--model", tiny_folder, "--task", file, "--site", "L1.mlp_act@END")
    file.write_text(pair_line() + "\n{not json\n")
    assert f"{file}" in (line := refused(*arguments)) and "line 2" in line
    file.write_text(pair_line(answer="") + "\n")
    assert "line 1" in (line := refused(*arguments)) and "token" in line
    assert "--answers all: one of whole, first" in refused(*arguments, "--answers", "all")
    assert "unknown metric 'accuracy': one of logit_diff" in refused(
        *arguments, "--metric", "accuracy"
    )
    file.write_text("")
    assert str(file) in refused(*arguments)
    assert "none.jsonl" in refused(
        "audit", "--model", tiny_folder, "--task", tmp_path / "none.jsonl", "--site", SITE
    )


def test_subspace_of_another_model_site_or_shape(refused, audited, tiny_folder, tmp_path):
    file = audited / SITE / "subspace.safetensors"
    common = ("audit", "--model", tiny_folder, "--pairs", 8, "--out", tmp_path)
    assert f"made for site {SITE}" in refused(
        *common, "--subspace", file, "--site", "L2.mlp_act@S2"
    )
    ours = TensorFile.load(file, FORMAT, "a subspace file")
    other = tmp_path / "other.safetensors"

    def altered(**changes: object) -> Path:
        replace(ours, **changes).save(other)  # type: ignore[arg-type]
        return other

    made_with = replace(ours.made_with, weights="0" * 64)
    assert "made with model" in refused(*common, "--subspace", altered(made_with=made_with))
    key = ("--subspace", other, "--key", "basis", "--site", SITE)
    assert "made with model" in refused(*common, *key)
    wide = {"basis": torch.eye(9)[:, :2]}
    assert "9 rows" in refused(*common, "--subspace", altered(tensors=wide))
    basis = ours.tensors["basis"]
    double = {"basis": basis * 2}
    assert "not orthonormal" in refused(*common, "--subspace", altered(tensors=double))
    save_file({"weights": basis}, other)
    assert "not a subspace file" in refused(*common, "--subspace", other)
    save_file({"basis": basis}, other, metadata={"format": "subspacelens.subspace/1"})
    assert "another version" in refused(*common, "--subspace", other)
    np.save(tmp_path / "v.npy", basis.numpy())
    assert "name its --site" in refused(*common, "--subspace", tmp_path / "v.npy")
    assert "there is no such file" in refused(*common, "--subspace", tmp_path / "none.npy")
    other.write_bytes(file.read_bytes()[:-20])
    assert "cannot be read" in refused(*common, "--subspace", other)


def test_out_that_cannot_be_written(refused, tiny_folder, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    assert "cannot be written" in refused(
        "audit", "--model", tiny_folder, *SMALL, "--out", blocked / "run"
    )


def test_report_of_nothing(refused, tmp_path):
    assert str(tmp_path) in refused("report", tmp_path)
    (tmp_path / SITE).mkdir()
    (tmp_path / SITE / "audit.json").write_text('{"schema": "other"}')
    assert "audit.json" in refused("report", tmp_path)
