"""ROME and causal tracing on tiny models, against plain passes."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from helpers_facts import known_to
from helpers_models import tiny_model
from helpers_tokenizer import ioi_tokenizer
from subspacelens import LensModel, Site
from subspacelens.core.errors import EditError
from subspacelens.edit import RomeRecipe, SecondMoment, edited, rome, rome_prompts
from subspacelens.edit.score import essence_logs, probe, score
from subspacelens.edit.tracing import ROLES, TraceRecipe, role_of, trace, traces
from subspacelens.engine.recall import recall
from subspacelens.model.hooks import at_columns, on_output
from subspacelens.model.mapping import build_map
from subspacelens.tasks.facts import SUBJECT, SUBJECT_START, fact_prompt, object_token

RECIPE = RomeRecipe(steps=20, prefixes=2, decay=0.0)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lens(request) -> LensModel:
    tokenizer = ioi_tokenizer()
    model = tiny_model(request.param, dtype=torch.float64, vocabulary=len(tokenizer))
    return LensModel(model, tokenizer, "tiny", build_map(model))


@pytest.fixture(scope="module")
def facts(lens):
    return known_to(lens, each=2)


@pytest.fixture(scope="module")
def edits(lens, facts):
    prompts = rome_prompts(lens, facts, [1], RECIPE)
    x = torch.randn(400, lens.map.dim(Site(1, "mlp_act", "END")), dtype=torch.float64)
    moment = SecondMoment(x.T @ x / 400, 400, 1.0)
    with torch.no_grad():
        return prompts, rome(prompts, 1, moment)


def said(lens, prompt, token) -> float:
    logits = lens.model(torch.tensor([prompt.ids])).logits[0, -1]
    return float(logits.softmax(-1)[token])


def test_edits_make_the_new_object_likelier_in_the_weights(lens, facts, edits):
    for fact, edit in zip(facts, edits[1], strict=True):
        prompt, new = fact_prompt(lens.tokenizer, fact), object_token(lens.tokenizer, fact.new)
        before = said(lens, prompt, new)
        with edited(lens, edit):
            assert said(lens, prompt, new) > 1.1 * before
        assert said(lens, prompt, new) == before


def test_the_edit_writes_its_value_at_the_subject_exactly(lens, facts, edits):
    prompts, made = edits
    keys = prompts.captured.base[Site(1, "mlp_act", SUBJECT)][prompts.bare]
    for key, edit, fact in zip(keys, made, facts, strict=True):
        assert float(key @ edit.b) == pytest.approx(1)
        prompt, seen = fact_prompt(lens.tokenizer, fact), {}
        handle = lens.map.blocks[1].down_proj.module.register_forward_hook(
            lambda _m, _a, out, seen=seen: seen.update(out=out.reshape(-1, out.shape[-1]))
        )
        lens.model(torch.tensor([prompt.ids]))
        plain = seen["out"][prompt.columns[SUBJECT]]
        with edited(lens, edit):
            lens.model(torch.tensor([prompt.ids]))
        handle.remove()
        torch.testing.assert_close(seen["out"][prompt.columns[SUBJECT]], plain + edit.a)


def test_values_stay_within_the_clamp(lens, facts):
    tight = RomeRecipe(steps=5, prefixes=0, clamp=0.01)
    prompts = rome_prompts(lens, facts, [1], tight)
    size = prompts.captured.base[Site(1, "mlp_out", SUBJECT)][prompts.bare].norm(dim=-1)
    dim = lens.map.dim(Site(1, "mlp_act", "END"))
    moment = SecondMoment(torch.eye(dim).double(), 1, 1.0)
    made = rome(prompts, 1, moment)
    for edit, limit in zip(made, size, strict=True):
        assert float(edit.a.norm()) == pytest.approx(0.01 * float(limit), rel=1e-6)


def test_scores_are_those_of_one_edited_model_at_a_time(lens, facts, edits):
    asked = probe(lens, facts)
    unedited = essence_logs(lens, asked)
    together = score(lens, asked, edits[1], unedited)
    plain = score(lens, asked, None, unedited)
    assert float(plain.essence.abs().max()) == 0
    for i, (fact, edit) in enumerate(zip(facts, edits[1], strict=True)):
        new, true = (object_token(lens.tokenizer, o) for o in (fact.new, fact.answer))
        with edited(lens, edit):
            own = said(lens, fact_prompt(lens.tokenizer, fact), new)
            words = recall(
                lens,
                [fact_prompt(lens.tokenizer, fact, text) for text in fact.paraphrases],
                torch.tensor([[new, true]] * len(fact.paraphrases)),
            ).probs
        assert float(together.new[i]) == pytest.approx(own, rel=1e-4)
        share = float((words[:, 0] > words[:, 1]).double().mean())
        assert float(together.paraphrase[i]) == pytest.approx(share)
        assert float(together.essence[i]) > 0


def test_a_trace_is_what_plain_hooks_give(lens, facts):
    fact = facts[0]
    prompt, answer = fact_prompt(lens.tokenizer, fact), object_token(lens.tokenizer, fact.answer)
    recipe = TraceRecipe(samples=2, noise=2.0, seed=1)
    found = trace(lens, prompt, answer, [0, 2, 3], recipe=recipe)
    assert found.clean == pytest.approx(said(lens, prompt, answer), rel=1e-5)
    weight = lens.model.get_input_embeddings().weight
    first, last = prompt.columns[SUBJECT_START], prompt.columns[SUBJECT]
    drawn = torch.randn(
        2, last + 1 - first, weight.shape[1], generator=torch.Generator().manual_seed(1)
    )
    states = []
    handle = lens.map.blocks[2].module.register_forward_hook(
        lambda _m, _a, out: states.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    lens.model(torch.tensor([prompt.ids]))
    handle.remove()
    column, values, plain = last, [], []
    for sample in range(2):

        def blur(_m, _a, out, sample=sample):
            out = out.clone()
            out[0, first : last + 1] += drawn[sample] * 2.0 * weight.std()
            return out

        def restore(_m, _a, out):
            hidden = (out if isinstance(out, torch.Tensor) else out[0]).clone()
            hidden[0, column] = states[0][0, column]
            return hidden if isinstance(out, torch.Tensor) else (hidden, *out[1:])

        noisy = lens.model.get_input_embeddings().register_forward_hook(blur)
        plain.append(said(lens, prompt, answer))
        back = lens.map.blocks[2].module.register_forward_hook(restore)
        values.append(said(lens, prompt, answer))
        noisy.remove()
        back.remove()
    assert found.corrupted == pytest.approx(sum(plain) / 2, rel=1e-4)
    assert float(found.restored[1, column]) == pytest.approx(sum(values) / 2, rel=1e-4)
    end = len(prompt.ids) - 1
    assert float(found.restored[2, end]) == pytest.approx(found.clean, rel=1e-4)
    alone = trace(lens, prompt, answer, [0, 2, 3], recipe=recipe, subject_only=True)
    torch.testing.assert_close(alone.at_subject, found.at_subject)
    modules = list(lens.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_windows_of_many_prompts_are_what_plain_hooks_give(lens, facts):
    prompts = [fact_prompt(lens.tokenizer, fact) for fact in facts]
    answers = [object_token(lens.tokenizer, fact.answer) for fact in facts]
    recipe = TraceRecipe(stream="mlp_out", samples=1, noise=2.0, window=3, seed=1)
    found = traces(lens, prompts, answers, [0, 2, 3], recipe=recipe, subject_only=True)
    weight, blocks = lens.model.get_input_embeddings().weight, lens.map.blocks
    for prompt, answer, each in zip(prompts, answers, found, strict=True):
        first, last = prompt.columns[SUBJECT_START], prompt.columns[SUBJECT]
        drawn = torch.randn(
            1, last + 1 - first, weight.shape[1], generator=torch.Generator().manual_seed(1)
        )
        noise = torch.zeros(len(prompt.ids), weight.shape[1], dtype=weight.dtype)
        noise[first : last + 1] = drawn[0] * 2.0 * float(weight.std())
        modules = [block.linear("mlp_out").module for block in blocks]
        clean = []
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(on_output(module, lambda x, kept=clean: kept.append(x.clone())))
            said(lens, prompt, answer)
        for row, layer in enumerate((0, 2, 3)):
            with ExitStack() as stack:
                embedding = lens.model.get_input_embeddings()
                stack.enter_context(on_output(embedding, lambda x, noise=noise: x + noise))
                for other in range(max(0, layer - 1), min(len(blocks), layer + 2)):
                    kept = clean[other].reshape(-1, weight.shape[1])[last]
                    column = torch.tensor([last])
                    stack.enter_context(
                        at_columns(on_output, modules[other], column, lambda _, kept=kept: kept)
                    )
                expected = said(lens, prompt, answer)
            assert float(each.at_subject[row]) == pytest.approx(
                expected - each.corrupted, rel=1e-3, abs=1e-6
            )
        assert abs(each.corrupted - each.clean) > 1e-6


def test_roles_and_refusals(lens):
    roles = [role_of(column, 1, 3, 6) for column in range(7)]
    assert roles == list(ROLES)
    assert role_of(2, 2, 2, 5) == "last subject" and role_of(2, 2, 2, 2) == "last token"
    with pytest.raises(EditError, match="not head_z"):
        TraceRecipe(stream="head_z")
    with pytest.raises(EditError, match="no facts"):
        rome_prompts(lens, [], [1], RECIPE)
    with pytest.raises(EditError, match="steps"):
        RomeRecipe(steps=0)
