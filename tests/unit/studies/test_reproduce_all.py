"""All studies by one command: what is there is kept, what was stopped goes on, both say so."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace

import pytest

from helpers_facts import known_to
from subspacelens.cli.jobs import EXPECTED
from subspacelens.core.identity import Identity
from subspacelens.core.kept import Kept
from subspacelens.core.machine import machine
from subspacelens.engine.text import Corpus
from subspacelens.fit.per_pair import Recipe
from subspacelens.model.loading import load_model
from subspacelens.studies import facts as facts_module
from subspacelens.studies.facts import FactsPlan, run_facts
from subspacelens.studies.facts_record import FactsRecord
from subspacelens.studies.made import CODE, Made, asked_sha256, checkout
from subspacelens.tasks.facts import as_counterfact


@pytest.fixture(scope="module")
def lens(tiny_folder):
    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def facts(lens):
    return known_to(lens, each=14)


def test_a_study_that_was_stopped_goes_on(lens, facts, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACELENS_CACHE", str(tmp_path / "cache"))
    ids = lens.tokenizer("Then, Mary and John met at the park. " * 40)["input_ids"]
    corpus = Corpus("text", tuple(tuple(ids[i : i + 16]) for i in range(0, len(ids) - 16, 16)))
    plan = FactsPlan(
        layers=(0, 2), per_relation=2, recipe=Recipe(steps=2, trial=1, rates=(0.3,), starts=1)
    )
    whole = run_facts(lens, facts, corpus, plan)
    measure, seen = facts_module.measure, []

    def stopping(captured, again, paraphrases, site, *rest):
        seen.append(site.layer)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(captured, again, paraphrases, site, *rest)

    monkeypatch.setattr(facts_module, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_facts(lens, facts, corpus, plan, kept=Kept(tmp_path / "parts", "key"))
    resumed = run_facts(lens, facts, corpus, plan, kept=Kept(tmp_path / "parts", "key"))
    assert seen == [0, 2, 2]
    assert resumed.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})


def test_what_is_asked_for_is_known_by_its_content(lens):
    def asked(identity: Identity, **settings):
        return asked_sha256("facts", model=identity.key, **settings)

    one = asked(lens.identity, seed=0)
    assert one == asked(lens.identity, seed=0)
    assert one != asked(lens.identity, seed=1)
    assert one != asked(replace(lens.identity, weights="other"), seed=0)
    assert {"engine", "edit", "survey", "studies"} <= set(CODE)
    assert not {"report", "cli", "bench"} & set(CODE)


def test_made_says_which_code_on_which_machine(tmp_path):
    made = Made.now("asked")
    assert made.machine == machine() and re.match(r".*\d+ cores?, [\d.]+ GiB, ", made.machine)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made.began)
    assert Made.model_validate_json(made.model_dump_json()) == made

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert checkout(package) == (None, False)
    git("init", "--quiet")
    checkout.cache_clear()
    assert checkout(package) == (None, False)
    git("add", "package")
    git("commit", "--quiet", "--message", "one")
    checkout.cache_clear()
    assert checkout(package) == (git("rev-parse", "HEAD"), False)
    (package / "__init__.py").write_text("x = 1\n")
    checkout.cache_clear()
    assert checkout(package) == (git("rev-parse", "HEAD"), True)
    checkout.cache_clear()


def test_all_studies_by_one_command(run, tiny_folder, facts, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACELENS_CACHE", str(tmp_path / "cache"))
    path, out = tmp_path / "facts.json", tmp_path / "out"
    path.write_text(json.dumps(as_counterfact(facts)))
    command = [
        "reproduce", "all", "--study", "toy", "--study", "facts", "--model", tiny_folder,
        "--facts", path, "--quick", "--out", out,
    ]  # fmt: skip
    code, printed, _ = run(*command, "--plan")
    assert code == 0 and printed.count(" no ") == 2 and not (out / "toy").exists()
    code, printed, error = run(*command)
    assert code == 0, error
    record = FactsRecord.model_validate_json((out / "facts/facts.json").read_bytes())
    assert record.made is not None and record.made.machine == machine()
    assert all(layer.slopes for layer in record.layers)
    assert not (out / "facts/parts").exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    code, printed, _ = run(*command)
    assert code == 0 and "nothing to do" in printed and record.made.began in printed
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    (out / "toy/toy.json").unlink()
    code, printed, _ = run(*command, "--seed", "1")
    assert code == 0 and printed.count(" no ") == 2
    assert FactsRecord.model_validate_json((out / "facts/facts.json").read_bytes()).made != (
        record.made
    )


def test_unknown_studies_are_refused(run):
    code, _, error = run("reproduce", "all", "--study", "tracing")
    assert code == 2 and f"no study 'tracing': one of {', '.join(EXPECTED)}" in error
