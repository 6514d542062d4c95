"""Second moments against plain hooks and scikit-learn; the text they come from."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from helpers_models import VOCABULARY, tiny_lens
from subspacelens import LensModel, TaskError
from subspacelens.core.errors import EditError
from subspacelens.core.site import Site
from subspacelens.edit import RankOneEdit, SecondMoment, edited, second_moments
from subspacelens.engine.text import SHORTEST, Corpus, embedded_corpus, read_corpus
from subspacelens.model.hooks import on_output
from subspacelens.model.loading import load_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACELENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["llama", "gpt2"])
def lens(request) -> LensModel:
    return tiny_lens(request.param, dtype=torch.float64)


def corpus_of(rows: int = 20) -> Corpus:
    generator = torch.Generator().manual_seed(0)
    lengths = [12, 12, 9] * rows
    windows = tuple(
        tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()) for n in lengths
    )
    return Corpus("random", windows)


def hooked(lens: LensModel, corpus: Corpus, layer: int) -> torch.Tensor:
    """Activations of all tokens, one full pass a window, by a plain hook."""
    rows = []
    block = lens.map.blocks[layer]
    assert block.down_proj is not None
    handle = block.down_proj.module.register_forward_pre_hook(
        lambda _m, args: rows.append(args[0].reshape(-1, args[0].shape[-1]).clone())
    )
    with torch.no_grad():
        for window in corpus.windows:
            lens.model(torch.tensor([window]), use_cache=False)
    handle.remove()
    return torch.cat(rows)


def test_equals_plain_hooks_window_by_window(lens):
    corpus = corpus_of()
    found = second_moments(lens, [2, 0], corpus)
    for layer in (0, 2):
        x = hooked(lens, corpus, layer)
        assert found[layer].tokens == len(x) == corpus.tokens
        torch.testing.assert_close(found[layer].matrix, x.T @ x / len(x))
        expected = ledoit_wolf_shrinkage(x.numpy(), assume_centered=True)
        assert found[layer].ledoit_wolf == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def runs(monkeypatch):
    """The layers of each measurement that was not read from the cache."""
    ran: list[list[int]] = []
    module = import_module("subspacelens.edit.second_moments")
    measured = module._measured

    def counted(lens, sites, corpus):
        ran.append(list(sites))
        return measured(lens, sites, corpus)

    monkeypatch.setattr(module, "_measured", counted)
    return ran


def test_cache_serves_the_same_model_and_text_only(lens, own_cache, runs):
    corpus = corpus_of()
    first = second_moments(lens, [1], corpus)[1]
    again = second_moments(lens, [1], corpus)[1]
    assert runs == [[1]]
    assert torch.equal(first.matrix, again.matrix) and again.fourth == first.fourth
    assert again.tokens == first.tokens and again.shrinkage == first.shrinkage
    assert list(second_moments(lens, [2, 1], corpus)) == [2, 1] and runs == [[1], [2]]
    second_moments(lens, [1], corpus_of(rows=3))
    assert len(runs) == 3
    for path in own_cache.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert torch.equal(second_moments(lens, [1], corpus)[1].matrix, first.matrix)
    assert len(runs) == 4


def test_an_edited_or_hooked_model_has_moments_of_its_own(lens, own_cache, runs):
    corpus = corpus_of()
    clean = second_moments(lens, [2], corpus)[2].matrix
    edit = RankOneEdit(
        1, torch.ones(lens.map.d_model), torch.ones(lens.map.dim(Site(1, "mlp_act", "END")))
    )
    with edited(lens, edit):
        assert not torch.equal(second_moments(lens, [2], corpus)[2].matrix, clean)
    files = set(own_cache.rglob("*"))
    with on_output(lens.map.blocks[1].module, lambda x: x + 1):
        assert not torch.equal(second_moments(lens, [2], corpus)[2].matrix, clean)
    assert set(own_cache.rglob("*")) == files and runs == [[2]] * 3
    assert torch.equal(second_moments(lens, [2], corpus)[2].matrix, clean) and len(runs) == 3


def test_solve_and_shrinkage(lens):
    full = second_moments(lens, [1], corpus_of())[1]
    assert full.shrinkage == 0 and full.condition < 1e10
    x = torch.randn(len(full.matrix), 2, dtype=torch.float64)
    torch.testing.assert_close(full.matrix @ full.solve(x), x)
    short = second_moments(lens, [1], Corpus("short", (tuple(range(3, 15)),)))[1]
    assert (short.condition is None or short.condition > 1e10) and 0 < short.shrinkage <= 1
    torch.testing.assert_close(short.effective @ short.solve(x), x)
    torch.testing.assert_close(short.effective.trace(), short.matrix.trace())
    assert SecondMoment(torch.zeros(3, 3).double(), 5, 1.0).condition is None
    with pytest.raises(EditError, match="singular"):
        SecondMoment(torch.zeros(3, 3).double(), 5, 1.0).solve(torch.ones(3, 1))
    with pytest.raises(EditError, match="between 0 and 1"):
        full.shrunken(2.0)


def test_no_hook_is_left(lens):
    second_moments(lens, [0, 3], corpus_of(rows=1))
    modules = list(lens.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_embedded_text_is_the_same_for_the_same_seed(tiny_folder):
    lens = load_model(tiny_folder, device="cpu")
    first, second = (embedded_corpus(lens, tokens=600, seed=1) for _ in range(2))
    assert first.sha256 == second.sha256
    assert first.sha256 != embedded_corpus(lens, tokens=600, seed=2).sha256
    assert 500 <= first.tokens <= 800
    assert all(len(w) >= SHORTEST for w in first.windows)


def test_a_users_file(tiny_folder, tmp_path):
    lens = load_model(tiny_folder, device="cpu")
    path = tmp_path / "text.txt"
    path.write_text("John gave the ring to Mary. " * 200)
    corpus = read_corpus(path, lens.tokenizer)
    assert (
        np.concatenate(corpus.windows[:1]).tolist()[:4]
        == lens.tokenizer("John gave the ring")["input_ids"][:4]
    )
    assert read_corpus(path, lens.tokenizer, tokens=100).tokens < corpus.tokens
    path.write_text("short")
    with pytest.raises(TaskError, match="fewer than"):
        read_corpus(path, lens.tokenizer)
    path.write_bytes(b"\xff\xfe" * 9)
    with pytest.raises(TaskError, match="not UTF-8"):
        read_corpus(path, lens.tokenizer)
    with pytest.raises(TaskError, match="cannot be read"):
        read_corpus(tmp_path / "none.txt", lens.tokenizer)
