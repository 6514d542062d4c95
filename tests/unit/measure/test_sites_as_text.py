"""Wherever a site is asked for, its text will do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import subspacelens as sl
from subspacelens.fit import FITS, given, per_pair
from subspacelens.model.loading import load_model

TEXT = "L1.mlp_act@S2"
SITE = sl.Site.parse(TEXT)


@pytest.fixture(scope="module")
def lens(tiny_folder):
    return load_model(tiny_folder)


@pytest.fixture(scope="module")
def captures(lens):
    return sl.capture_task(lens, sl.ioi(lens.tokenizer, train=24, test=8, held_out=0), [TEXT])


def test_of_gives_a_site_for_either():
    assert sl.Site.of(TEXT) == SITE and sl.Site.of(SITE) is SITE
    with pytest.raises(sl.SiteError, match="is not of the form"):
        sl.Site.of("mlp_act")


def test_certificates(lens):
    assert sl.certify(lens, TEXT) is not None and sl.certify(lens, TEXT).site == SITE
    (row,) = sl.doctor_rows(lens, [TEXT])
    assert row.site == SITE and row.passed


def test_captures(lens, captures):
    capture = sl.capture(lens, captures.task.test, [TEXT])
    assert capture.at(TEXT, lens).site == SITE
    assert torch.equal(capture.difference(TEXT), capture.difference(SITE))


@pytest.mark.parametrize("name", FITS)
def test_every_fit(lens, captures, name):
    settings = {"steps": 2} if "steps" in FITS[name].options else {}
    found = sl.fit(lens, captures.train, TEXT, name, **settings)
    assert found.site == SITE
    assert torch.equal(found.basis, FITS[name](lens, captures.train, SITE, **settings).basis)


def test_the_others(lens, captures, tmp_path):
    assert sl.das(lens, captures.train, TEXT, steps=1).site == SITE
    assert per_pair(lens, captures.test, TEXT).site == SITE
    np.save(tmp_path / "v.npy", np.arange(1.0, 57))
    found = given(lens, TEXT, tmp_path / "v.npy")
    found.save(tmp_path / "v.safetensors")
    assert sl.Subspace.load(tmp_path / "v.safetensors", lens, TEXT).site == SITE
    assert len(sl.patch(lens, captures, TEXT, found).pairs) == 8
    found = sl.instant_map(lens, captures.task.test, ["mlp_act"], ["S2"], refine=[TEXT])
    assert found.at(TEXT).site == SITE
