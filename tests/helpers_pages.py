"""One page of every kind, of synthetic records and of studies of tiny random models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.stats import DegenerateDataWarning

import subspacelens as sl
from helpers_facts import known_to
from helpers_find import make_find, make_lacking, make_nowhere
from helpers_records import make_record
from subspacelens.audit.record import save_audit
from subspacelens.edit import RomeRecipe
from subspacelens.edit.tracing import TraceRecipe
from subspacelens.engine.text import Corpus
from subspacelens.find.record import FindRecord, save_find
from subspacelens.fit.per_pair import Recipe
from subspacelens.report import write_find_page, write_pages, write_report, write_screen
from subspacelens.report.addition_page import write_addition_page
from subspacelens.report.editing_page import write_editing
from subspacelens.report.facts_page import write_facts
from subspacelens.report.instant_page import write_instant_page
from subspacelens.report.ioi_page import write_ioi
from subspacelens.report.map_page import write_map_page
from subspacelens.report.survey_page import write_survey
from subspacelens.report.toy_page import write_toy
from subspacelens.studies.editing import EditingPlan, run_editing
from subspacelens.studies.facts import FactsPlan, run_facts
from subspacelens.studies.ioi import reproduce_ioi
from subspacelens.studies.ioi.plan import Sizes
from subspacelens.studies.prevalence import prevalence
from subspacelens.studies.toy import run_toy

AUDITED = (
    ("illusory", "L18.mlp_act@S2"),
    ("faithful", "L17.resid_post@S2"),
    ("undetermined", "L16.mlp_act@S2"),
)
_SHORT = Recipe(steps=3, trial=1, rates=(0.3,), starts=1)
_TINY = Sizes(
    map=4, train=12, test=16, held_out=8, heads=6, fresh=24,
    steps=3, control_steps=2, seeds=2, random_mlps=1,
)  # fmt: skip


def audits(folder: Path) -> Path:
    """The page of three audits."""
    for label, site in AUDITED:
        save_audit(make_record(label, site), folder / site / "audit.json")
    return write_report(folder)


def search(folder: Path, record: FindRecord | None = None) -> Path:
    """The page of a search, with the audits of what it looked at."""
    record = record or make_find()
    save_find(record, folder / "find.json")
    for place in record.places:
        label = place.label if place.label in ("faithful", "illusory") else "undetermined"
        save_audit(make_record(label, place.site), folder / place.site / "audit.json")
    return write_find_page(folder)


def every_page(folder: Path, place: Path, tiny_folder: str) -> Mapping[str, Path]:
    """A page of every kind below `folder`, by name. `place` and `tiny_folder`: see `conftest`."""
    pages = {
        "audit": audits(folder / "audit"),
        "find": search(folder / "find"),
        "find, nowhere": search(folder / "nowhere", make_nowhere()),
        "find, lacking": search(folder / "lacking", make_lacking()),
        "toy": write_toy(run_toy(pairs=50), folder / "toy"),
    }
    patched, instant = make_find().patched, make_find().instant
    assert patched is not None and instant is not None
    theory = sl.InstantMap.from_json(instant.model_dump_json(by_alias=True))
    components = sl.PatchingMap.from_json(patched.model_dump_json(by_alias=True))
    pages["map"] = write_map_page(components, folder / "map", theory)
    pages["instant map"] = write_instant_page(theory, folder / "instant")

    lens = sl.load_model(tiny_folder, device="cpu")
    task = sl.ioi(lens.tokenizer, train=16, test=16, held_out=8)
    site = sl.Site.parse("L1.mlp_act@S2")
    captures = sl.capture_task(lens, task, [site])
    rows = np.random.default_rng(0).normal(size=(4, 56)).astype(np.float32)
    pages["screen"] = write_screen(sl.screen(lens, captures, site, rows), folder / "screen")
    vector = torch.from_numpy(rows[0])
    sl.audit_addition(lens, captures, site, vector, alpha=2.0).save(folder / "addition")
    pages["addition"] = write_addition_page(folder / "addition")

    facts = known_to(lens, each=14)
    ids = lens.tokenizer("Then, Mary and John met at the park. " * 40)["input_ids"]
    corpus = Corpus("text", tuple(tuple(ids[i : i + 16]) for i in range(0, len(ids) - 16, 16)))
    plan = FactsPlan(
        layers=(0, 2), resid_layers=(1,), shared_layers=(1,), shared_dim=2, per_relation=3,
        recipe=_SHORT,
    )  # fmt: skip
    pages["facts"] = write_facts(run_facts(lens, facts, corpus, plan, ""), folder / "facts")
    edits = EditingPlan((0, 2), 3, _SHORT, RomeRecipe(steps=2, prefixes=1), TraceRecipe(samples=1))
    edited = run_editing(lens, facts, corpus, edits, "")
    pages["editing"] = write_editing(edited, folder / "editing")

    other = sl.load_model(place / "model", device="cpu")
    nouns = sl.pairs_task(other.tokenizer, place / "pairs.jsonl")
    random = np.random.default_rng(0).integers(3, 18, (60, 20))
    words = tuple(tuple(window) for window in random.tolist())
    survey = prevalence(
        other, nouns, ["END"], parts=("weights", "random", "distortion"), pairs=16, steps=3,
        seeds=2, corpus=Corpus("text", words),
    )  # fmt: skip
    pages["survey"] = write_survey(survey, folder / "survey")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        pages["ioi"] = write_ioi(reproduce_ioi(lens, sizes=_TINY), folder / "ioi")
    (pages["index"],) = write_pages(folder)
    return pages
