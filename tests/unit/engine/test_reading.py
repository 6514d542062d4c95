"""Answers of several tokens, and several answers: replay equals plain full passes with a hook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers_models import VOCABULARY, tiny_lens
from helpers_oracle import hooked_logits, random_pairs
from subspacelens.core.errors import TaskError
from subspacelens.core.site import Site
from subspacelens.core.stored import StoredRows
from subspacelens.engine import patches
from subspacelens.engine.capture import capture
from subspacelens.engine.gradient_pass import gradient_pass
from subspacelens.engine.outcomes import Outcomes
from subspacelens.engine.recall import goes_on
from subspacelens.engine.store import kept_capture
from subspacelens.fit.loss import slopes
from subspacelens.measure.readers import attribute_readers, frozen
from subspacelens.model.lens import LensModel
from subspacelens.tasks.answers import Continuations
from subspacelens.tasks.pairset import Pair, PairSet

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "mixtral", "bloom", "falcon")
ACCEPTED = (
    Continuations(((5, 6),), ((7, 8, 9),)),
    Continuations(((5,),), ((7, 8),)),
    Continuations(((5,), (6, 3)), ((7, 8), (7, 9, 4))),
    Continuations(((5,), (6,)), ((7,),)),
    Continuations(((5, 6, 7, 8),), ((5, 6, 7, 9), (5, 8))),
    None,
)
LENGTHS = [(9, 4), (12, 7), (9, 0), (11, 6), (8, 7), (9, 4)]
SITES = [
    Site(1, "resid_post", "X"), Site(3, "resid_post", "END"), Site(2, "head_z", "X", head=1),
    Site(3, "attn_out", "END"), Site(0, "resid_pre", "END"),
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request) -> LensModel:
    return tiny_lens(request.param)


def longer(accepted: Sequence[Continuations | None] = ACCEPTED) -> PairSet:
    pairs = [
        replace(pair, answer=each.answers[0][0], target=each.targets[0][0], continuations=each)
        if each
        else pair
        for pair, each in zip(random_pairs(LENGTHS), accepted, strict=False)
    ]
    return PairSet("longer", "test", tuple(pairs))


def log_prob(lens: LensModel, pair: Pair, tokens, site: Site | None, delta) -> Tensor:
    """log p(tokens | base) by one full pass for each token, with a plain hook."""
    total = torch.zeros((), dtype=torch.float64)
    for i, token in enumerate(tokens):
        where = site or SITES[0]
        column = pair.base.columns[where.label]
        logits = hooked_logits(
            lens,
            pair.base.ids + tokens[:i],
            where,
            column,
            lambda h: h + (0 if site is None else delta),
        )
        total = total + logits.double().log_softmax(-1)[token]
    return total


def sides(lens: LensModel, pair: Pair, site: Site | None, delta) -> Tensor:
    both = (pair.accepted.answers, pair.accepted.targets)
    logs = [[log_prob(lens, pair, tokens, site, delta) for tokens in side] for side in both]
    return torch.stack([torch.stack(side).logsumexp(0) for side in logs])


def added(change):
    return lambda h: h + change


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_values_and_gradients_equal_plain_hooks(lens):
    pairs = longer()
    captured = capture(lens, pairs, SITES)
    plain = torch.stack([sides(lens, pair, None, 0) for pair in pairs])
    close(captured.clean.logit_diff, plain[:, 0] - plain[:, 1])
    for site in SITES:
        replay = captured.at(site)
        delta = captured.difference(site)[None].clone().requires_grad_(True)
        seen = []
        for piece in replay.pieces():
            differences = piece.logit_diff(piece.of(delta))[0]
            pulled = torch.autograd.grad(differences.sum(), delta, retain_graph=True)[0][0]
            logs = piece.log_probs(piece.of(delta))[0]
            for row, index in enumerate(piece.pairs.tolist()):
                change = delta[0, index].detach().requires_grad_(True)
                expected = sides(lens, pairs[index], site, change)
                close(logs[row], expected)
                close(differences[row], expected[0] - expected[1])
                slope = torch.autograd.grad(expected[0] - expected[1], change)[0]
                torch.testing.assert_close(pulled[index], slope, rtol=1e-4, atol=1e-6)
                seen.append(index)
        assert sorted(seen) == list(range(len(pairs)))
        outcomes = replay.outcomes(patches.Full())
        for index, pair in enumerate(pairs):
            change, column = delta[0, index].detach(), pair.base.columns[site.label]
            full = hooked_logits(lens, pair.base.ids, site, column, added(change))
            assert int(outcomes.top[index]) == int(full.argmax())
        decided = replay.effects({"": patches.Full()}, decided=True)[""].patched
        assert torch.equal(decided.says("target", pairs), outcomes.says("target", pairs))


def test_gradient_pass_equals_the_replay(lens):
    pairs, some = longer(), [Site(1, "resid_post", "X"), Site(2, "attn_out", "END")]
    found = gradient_pass(lens, pairs, some, memory=1)
    captured = capture(lens, pairs, some)
    close(found.clean.logit_diff, captured.clean.logit_diff)
    assert torch.equal(found.clean.top, captured.clean.top)
    for site in some:
        close(found.base[site], captured.base[site])
        close(found.source[site], captured.source[site])
        close(found.gradients[site], captured.at(site).gradients())


@pytest.fixture(scope="module")
def llama() -> LensModel:
    return tiny_lens("llama")


def test_pieces_subsets_files_and_exchange_change_nothing(llama, tmp_path):
    pairs, site = longer(), Site(1, "resid_post", "X")
    captured = capture(llama, pairs, [site])
    whole = captured.at(site).outcomes(patches.Full())
    small = capture(llama, pairs, [site], memory=1).at(site)
    assert len(small.pieces(3)) == 3 * len(pairs)
    close(small.outcomes(patches.Full()).logit_diff, whole.logit_diff)
    order = torch.tensor([4, 0, 2, 2, 5, 0])
    some = captured.at(site).subset(order)
    close(some.outcomes(patches.Full()).logit_diff, whole.logit_diff[order])
    close(some.gradients(), captured.at(site).gradients()[order])
    turned = captured.select(pairs.exchanged(), torch.arange(len(pairs))).at(site)
    close(turned.outcomes(patches.Full()).logit_diff, -whole.logit_diff)
    kept_capture(llama, pairs, [site], tmp_path, memory=1)
    stored = kept_capture(llama, pairs, [site], tmp_path, memory=1).at(site)
    assert isinstance(next(iter(stored.buckets[0].entries.values())), StoredRows)
    close(stored.outcomes(patches.Full()).logit_diff, whole.logit_diff)
    one = replace(pairs[0], continuations=Continuations(((5, 6),), ((7, 8, 3),)))
    assert PairSet("longer", "test", (one, *pairs[1:])).sha256 != pairs.sha256


def test_one_token_a_side_is_the_same_with_continuations_and_without(llama):
    plain, site = random_pairs(LENGTHS), Site(2, "mlp_act", "X")
    same = PairSet(
        "plain",
        "test",
        tuple(
            replace(p, continuations=Continuations(((p.answer,),), ((p.target,),))) for p in plain
        ),
    )
    one, other = (capture(llama, pairs, [site]).at(site) for pairs in (plain, same))
    for name in ("logit_diff", "top"):
        close(*(getattr(x.outcomes(patches.Full()), name) for x in (one, other)))
    close(one.gradients(), other.gradients())


def test_cross_entropy_is_that_of_the_accepted_targets(llama):
    pairs, site = longer(), Site(1, "resid_post", "X")
    captured = capture(llama, pairs, [site])
    delta = captured.difference(site)
    values, _ = slopes("cross-entropy", captured.at(site), delta)
    expected = [-sides(llama, p, site, d)[1] for p, d in zip(pairs, delta, strict=True)]
    close(values, torch.stack(expected))


def test_readers_see_the_patched_column_of_every_row(llama):
    """What the readers are made to give without a patch takes all of the effect away where nothing
    else reads the patched column."""
    pairs, site = longer(), Site(2, "resid_post", "X")
    replay = capture(llama, pairs, [site]).at(site)
    delta = replay.difference
    readers = attribute_readers(replay, delta)
    held = frozen(replay, delta, readers)
    inner = torch.tensor([pair.base.columns["X"] < len(pair.base.ids) - 1 for pair in pairs])
    close(held.logit_diff[inner], replay.clean.logit_diff[inner])
    alike = attribute_readers(replay.subset(torch.tensor([0])), delta[:1])
    total = sum(share.attribution for share in alike)
    assert math.isfinite(total) and total != 0


def test_what_a_model_says_begins_with_the_accepted_and_prefers_it():
    pairs = longer((ACCEPTED[2], ACCEPTED[0], None, ACCEPTED[3]))
    target = pairs[2].target
    difference = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    says = Outcomes(difference, torch.tensor([7, 7, target, 6])).says
    assert says("target", pairs).tolist() == [True, False, True, False]
    assert says("answer", pairs).tolist() == [False, False, False, True]


def test_goes_on_asks_for_every_token(llama):
    prompt = random_pairs([(7, 2)])[0].base
    ids = prompt.ids
    for _ in range(3):
        logits = llama.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids = (*ids, int(logits.argmax()))
    said = ids[len(prompt.ids) :]
    other = (said[0], (said[1] + 1) % VOCABULARY)
    asked = [(prompt, [said]), (prompt, [other]), (prompt, [other, said[:1]])]
    assert goes_on(llama, asked) == [True, False, True]


def test_first_tokens_are_all_that_is_left():
    pairs = longer(ACCEPTED[:4]).first_tokens()
    assert [pair.continuations for pair in pairs] == [
        None, None, Continuations(((5,), (6,)), ((7,),)), ACCEPTED[3]
    ]  # fmt: skip
    with pytest.raises(TaskError, match="begin with the same token: compare the whole answers"):
        longer(ACCEPTED[:5]).first_tokens()
