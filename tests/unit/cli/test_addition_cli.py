"""`audit --operation add`: what it writes and prints, and what it refuses."""

from __future__ import annotations

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
