"""`audit --operation add`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import subspacelens as sl
from subspacelens.core.errors import SubspaceError
from subspacelens.fit.vector import read_vector

SITE = "L1.resid_post@S2"
SMALL = ("--pairs", 16, "--site", SITE, "--operation", "add")


def test_a_vector_is_added_judged_and_written_down(run, tiny_folder, tmp_path):
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    np.save(tmp_path / "v.npy", vector)
    code, out, err = run(
        "audit", "--model", tiny_folder, *SMALL, "--alpha", 2.5, "--subspace", tmp_path / "v.npy",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    record = sl.load_addition(tmp_path / "out" / SITE / "addition.json")
    assert record.vector.alpha == 2.5 and record.vector.given["file"] == "v.npy"
    assert record.vector.norm == pytest.approx(float(np.linalg.norm(vector)), rel=1e-6)
    assert record.tests["unrelated_text"].value > 0 and record.controls is None
    assert record.verdict.label.upper() in out and "alpha" in out
    page = (tmp_path / "out/addition.html").read_text()
    assert "subspacelens audit --model" in page and "http://" not in page.split("<script")[0]
    again = tmp_path / "out" / SITE / "vector.npy"
    assert np.allclose(np.load(again), vector)


def test_two_lists_of_texts(run, tiny_folder, tmp_path):
    """Adding the difference of the lists brings either to the other, and says so."""
    names = ("Mary", "John", "Tom", "Anna", "James", "David", "Sarah", "Peter")
    lines = [
        {"positive": [f"Then {name} gave a drink to"], "negative": f"Then {name} and"}
        for name in names
    ]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(map(json.dumps, lines)))
    lens = sl.load_model(tiny_folder)
    task = sl.texts_task(lens.tokenizer, texts)
    assert len(task.train) == len(task.test) == 4 and {p.z for p in task.test} == {(0, 1), (1, 0)}
    site = sl.Site.parse("L1.resid_post@END")
    captured = sl.capture_task(lens, task, [site], shifted=True).train
    sign = torch.tensor([pair.z[1] - pair.z[0] for pair in captured.pairs])[:, None]
    np.save(tmp_path / "v.npy", (sign * captured.difference(site)).mean(0).numpy())
    code, out, err = run(
        "audit", "--model", tiny_folder, "--task", texts, "--site", site, "--operation", "add",
        "--subspace", tmp_path / "v.npy", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    record = sl.load_addition(tmp_path / "out" / str(site) / "addition.json")
    assert (record.verdict.label, record.verdict.code) == ("undetermined", "void")
    assert "no answers" in record.verdict.reasons[0] and "UNDETERMINED" in out
    assert set(record.tests) == {"towards", "chance", "natural_range", "separation"}
    assert record.tests["towards"].value > 0 and record.tests["separation"].value > 0.5
    assert record.vector.cosine == pytest.approx(1, abs=1e-5) and not record.effects
    at = record.curve.dose.index(1.0)
    assert record.curve.effect[at] == pytest.approx(record.tests["towards"].value, abs=1e-5)
    code, _, err = run(
        "audit", "--model", tiny_folder, "--task", texts, "--site", site, "--operation", "add",
        "--subspace", tmp_path / "v.npy", "--controls",
    )  # fmt: skip
    assert code == 2 and "lists of texts have no answers" in err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"positive": ["a"]}'], "1 positive and 0 negative texts"),
        (['{"positive": ["Then"]}', '{"negative": ["Then"]}'], "line 2: 'Then' is in both lists"),
        (['{"positive": [1]}'], "line 1: not of the form"),
        (["nonsense"], "line 1: not of the form"),
    ],
)
def test_lists_that_are_none(tiny_folder, tmp_path, lines, message):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(sl.TaskError, match=message):
        sl.texts_task(sl.load_model(tiny_folder).tokenizer, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--operation", "add"), "name the file of the vector with --subspace"),
        (("--alpha", 2), "give --operation add too"),
        (("--operation", "multiply"), "--operation 'multiply': one of interchange, add"),
    ],
)
def test_options_that_do_not_go_together(run, tiny_folder, options, message):
    code, _, err = run("audit", "--model", tiny_folder, "--site", SITE, *options)
    assert code == 2 and message in err and "Traceback" not in err


def test_a_vector_is_read_as_it_is(tiny_folder, tmp_path):
    lens, site = sl.load_model(tiny_folder), sl.Site.parse(SITE)
    vector = -3.0 * torch.arange(32.0)
    np.save(tmp_path / "v.npy", vector.numpy())
    found = read_vector(lens, site, tmp_path / "v.npy")
    assert torch.equal(found.values, vector.double()) and found.found["file"] == "v.npy"
    np.save(tmp_path / "many.npy", torch.stack([vector, 2 * vector]).numpy())
    assert torch.equal(
        read_vector(lens, site, tmp_path / "many.npy", row=1).values, 2 * vector.double()
    )
    np.save(tmp_path / "wide.npy", np.ones((3, 32)))
    with pytest.raises(SubspaceError, match="several vectors"):
        read_vector(lens, site, tmp_path / "wide.npy")
    np.save(tmp_path / "zero.npy", np.zeros(32))
    with pytest.raises(SubspaceError, match="zero or not finite"):
        read_vector(lens, site, tmp_path / "zero.npy")
