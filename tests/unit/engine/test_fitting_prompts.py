"""Prompts that the model cannot read are named by their line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_models import VOCABULARY, tiny_lens
from helpers_oracle import hooked_logits, random_pairs
from subspacelens.core.errors import TaskError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.fitting_prompts import check_fits
from subspacelens.engine.patches import Full
from subspacelens.model.lens import LensModel
from subspacelens.tasks.pairset import PairSet


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom", "mpt"])
def lens(request) -> LensModel:
    return tiny_lens(request.param)


def pairs_with(**changes) -> PairSet:
    first, second = random_pairs([(8, 4), (9, 5)])
    return PairSet("mine", "test", (first, replace(second, **changes)))


def test_prompts_that_fit_pass(lens):
    check_fits(lens, pairs_with())


@pytest.mark.parametrize("role", ["base", "source"])
def test_a_prompt_longer_than_the_context_is_named_by_its_line(lens, role):
    if lens.id == "bloom":
        pytest.skip("its configuration names no context")
    prompt = replace(pairs_with()[0].base, ids=(5,) * 65)
    pairs = pairs_with(**{role: prompt}, where="pairs.jsonl, line 7")
    with pytest.raises(TaskError, match=f"line 7: the {role} has 65 tokens, and .* is 64"):
        check_fits(lens, pairs)


@pytest.mark.parametrize("which", ["base", "source", "answer", "target"])
def test_tokens_that_the_model_does_not_know_are_named(lens, which):
    prompt = replace(pairs_with()[0].base, ids=(5, VOCABULARY, 6))
    pairs = pairs_with(**{which: prompt if which in ("base", "source") else VOCABULARY})
    with pytest.raises(TaskError, match=f"task mine, test pair 1: token id {VOCABULARY}"):
        check_fits(lens, pairs)


def test_a_capture_names_the_line_of_a_pair_that_does_not_fit(lens):
    site = Site(1, "mlp_act", "X")
    pairs = pairs_with(answer=VOCABULARY, where="pairs.jsonl, line 7")
    with pytest.raises(TaskError, match="line 7: token id"):
        capture(lens, pairs, [site])
    (source,) = random_pairs([(9, 6)])
    unequal = pairs_with(source=source.source, where="pairs.jsonl, line 9")
    with pytest.raises(TaskError, match="line 9: label X is in column 5 of the base and 6 of"):
        capture(lens, unequal, [site])


def test_prompts_of_different_lengths_are_patched_at_their_ends(lens):
    """The last token of the source goes into that of the base, as a plain hook has it."""
    site = Site(2, "resid_post", "END")
    captured = capture(lens, random_pairs([(8, 4), (9, 5)], shift=3), [site])
    patched = captured.at(site).outcomes(Full()).logit_diff
    for number, pair in enumerate(captured.pairs):
        seen: list[torch.Tensor] = []
        theirs, end = pair.source, len(pair.source.ids) - 1
        hooked_logits(lens, theirs.ids, site, end, lambda h, seen=seen: seen.append(h.clone()) or h)
        logits = hooked_logits(
            lens, pair.base.ids, site, len(pair.base.ids) - 1, lambda h, seen=seen: seen[0]
        )
        expected = logits[pair.answer] - logits[pair.target]
        assert float(patched[number]) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
        assert abs(float(patched[number] - captured.clean.logit_diff[number])) > 1e-3
