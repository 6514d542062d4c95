"""How much of what enters an MLP's nonlinearity survives into the kernel of what leaves it.

Two measures on plain text, from Gram matrices of token activations (arXiv 2311.17030, appendix):
whether products of differences agree before and after (`r2`), and whether a linear separator fitted
before still separates when its dual coefficients are used after. Before: the outputs of the
projections into the MLP; a gated MLP has two, taken as one vector (and each alone). After: the
input of the down-projection W, projected on the kernel of W.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC
from torch import Tensor

from ..certify import centred
from ..core.errors import TaskError
from ..core.geometry import Split
from ..core.progress import track
from ..core.records import Estimate, Record
from ..engine.text import Corpus
from ..model.hooks import check_ready, exclusive, on_input, on_output, stopping_after
from ..model.lens import LensModel

TOKENS = 1000
TUPLES = 20_000
FEWEST = 100
FIFTHS = 5
SVM_TOKENS = 300
DIRECTIONS = 10
LAYERS_A_PASS = 10
HARD = 1e10
SVM_STEPS = 100_000
"""Where the margin is so thin that the solver needs more, its last separator is taken."""


class Transfer(Record):
    """Accuracies of linear separators fitted before the nonlinearity: `fitted`, after it on the
    tokens that they were fitted on, as in the paper, where each token helps to classify itself;
    `shuffled`, the same with shuffled dual coefficients; `held_out`, after it on other tokens;
    `before`, on those other tokens before it, the most that can be hoped for."""

    fitted: Estimate
    shuffled: Estimate
    held_out: Estimate
    before: Estimate


class Distortion(Record):
    """One layer. `r2`: of products of differences, after against before, by ordinary least squares;
    the interval is the range over fifths of the text. `alone`: the same before each projection
    alone. `transfer`: accuracy after the nonlinearity of separators fitted before it, mean and
    range over directions (see `Transfer`)."""

    layer: int
    before: list[str]
    r2: Estimate
    alone: dict[str, float]
    transfer: Transfer


def distortion(
    lens: LensModel, corpus: Corpus, *, tokens: int = TOKENS, seed: int = 0
) -> list[Distortion]:
    """Both measures at every layer with an MLP, on `tokens` tokens of the text drawn by `seed`.
    Raises `TaskError` for a text of fewer than `FEWEST`.

    >>> rows = distortion(lens, embedded_corpus(lens))
    >>> [(row.layer, row.r2.value) for row in rows]
    """
    if corpus.tokens < FEWEST:
        raise TaskError(
            f"corpus {corpus.name}: {corpus.tokens} tokens are too few, {FEWEST} at least: give "
            "more text"
        )
    layers = [i for i, block in enumerate(lens.map.blocks) if "mlp_act" not in block.missing]
    chunks = [layers[i : i + LAYERS_A_PASS] for i in range(0, len(layers), LAYERS_A_PASS)]
    distortions = []
    for layer, before, after in _activations(lens, corpus, chunks, tokens, seed):
        distortions.append(_at(lens, layer, before, after, seed))
    return distortions


def _at(
    lens: LensModel, layer: int, before: dict[str, Tensor], after: Tensor, seed: int
) -> Distortion:
    down = lens.map.blocks[layer].down
    kernel = _gram(Split.of(down.weight, centred=centred(lens)).null(after.T).T)
    single = {name: _gram(x) for name, x in before.items()}
    whole = sum(single.values(), torch.zeros_like(kernel))
    generator = torch.Generator().manual_seed(seed)
    fifths = torch.randperm(len(kernel), generator=generator).chunk(FIFTHS)
    parts = [r_squared(whole[f][:, f], kernel[f][:, f], generator) for f in fifths]
    return Distortion(
        layer=layer,
        before=list(before),
        r2=Estimate(value=r_squared(whole, kernel, generator), low=min(parts), high=max(parts)),
        alone={name: r_squared(gram, kernel, generator) for name, gram in single.items()},
        transfer=separators(whole, kernel, seed),
    )


def r_squared(before: Tensor, after: Tensor, generator: torch.Generator) -> float:
    """r² of (p_i - p_j)·(p_k - p_l) after against before, over random tuples of distinct tokens;
    from Gram matrices (n, n)."""
    n = len(before)
    draws = torch.randint(n, (2 * TUPLES, 4), generator=generator)
    ordered = draws.sort(dim=1).values
    draws = draws[(ordered[:, 1:] != ordered[:, :-1]).all(dim=1)][:TUPLES]
    i, j, k, m = draws.T

    def products(gram: Tensor) -> Tensor:
        return gram[i, k] - gram[i, m] - gram[j, k] + gram[j, m]

    return float(torch.corrcoef(torch.stack([products(before), products(after)]))[0, 1] ** 2)


def separators(before: Tensor, after: Tensor, seed: int) -> Transfer:
    """Hard-margin linear separators of median splits along `DIRECTIONS` random directions before,
    their dual coefficients used after; from Gram matrices (n, n).

    A direction Xᵀg of the span of the activations X has projections K g, so the Gram matrices K are
    all that is needed.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(before))[: 2 * SVM_TOKENS]
    fit, rest = np.array_split(chosen, 2)
    k_before, k_after = before.numpy(), after.numpy()
    values, vectors = np.linalg.eigh(k_before[np.ix_(chosen, chosen)])
    scale = np.sqrt(np.clip(values, 0, None))
    rows = []
    for _ in range(DIRECTIONS):
        projections = vectors @ (scale * rng.standard_normal(len(scale)))
        labels = projections > np.median(projections)
        y_fit, y_rest = labels[: len(fit)], labels[len(fit) :]
        unit = k_before[np.ix_(fit, fit)]
        machine = SVC(C=HARD, kernel="precomputed", max_iter=SVM_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            machine.fit(unit / np.trace(unit) * len(unit), y_fit)
        duals = np.zeros(len(fit))
        duals[machine.support_] = machine.dual_coef_[0]
        both = y_fit, y_rest
        fitted, held_out = _accuracies(duals, k_after, fit, rest, *both)
        shuffled, _ = _accuracies(rng.permutation(duals), k_after, fit, rest, *both)
        _, at_first = _accuracies(duals, k_before, fit, rest, *both)
        rows.append((fitted, shuffled, held_out, at_first))
    names = ("fitted", "shuffled", "held_out", "before")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return Transfer(**{name: _over(values) for name, values in columns})


def _accuracies(duals, gram, fit, rest, y_fit, y_rest) -> tuple[float, float]:
    """On `fit` at the best threshold, and on `rest` at that one."""
    scores = gram[np.ix_(fit, fit)] @ duals
    order = np.argsort(scores)
    below = np.concatenate([[0], np.cumsum(~y_fit[order])])
    above = y_fit.sum() - np.concatenate([[0], np.cumsum(y_fit[order])])
    cut = int(np.argmax(below + above))
    ends = np.concatenate([[-np.inf], scores[order], [np.inf]])
    threshold = (ends[cut] + ends[cut + 1]) / 2 if 0 < cut < len(scores) else ends[cut + (cut > 0)]
    held_out = ((gram[np.ix_(rest, fit)] @ duals > threshold) == y_rest).mean()
    return float((below + above).max() / len(fit)), float(held_out)


def _over(values: Sequence[float]) -> Estimate:
    return Estimate(value=float(np.mean(values)), low=min(values), high=max(values))


def _gram(x: Tensor) -> Tensor:
    x = x.double()
    return x @ x.T


def _activations(
    lens: LensModel, corpus: Corpus, chunks: Sequence[Sequence[int]], tokens: int, seed: int
) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
    """For each layer: what its projections into the MLP give, by name, and what its down-projection
    reads, (n, width) each, of the same `tokens` random tokens; no first ones of a window."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(corpus.windows), generator=generator).tolist()
    used: list[tuple[int, ...]] = []
    while order and sum(len(w) - 1 for w in used) < 2 * tokens:
        used.append(corpus.windows[order.pop()])
    text = Corpus(corpus.name, tuple(used))
    total = sum(len(w) - 1 for w in used)
    keep = torch.randperm(total, generator=generator)[:tokens]
    for chunk in track(chunks, "distortion"):
        taken = _pass(lens, text, chunk)
        for layer in chunk:
            block = lens.map.blocks[layer]
            names = [r.linear.name for r in block.readers if not r.attention]
            before = {n.rsplit(".", 1)[-1]: taken.pop((layer, n))[keep] for n in names}
            yield layer, before, taken.pop((layer, ""))[keep]


def _pass(lens: LensModel, text: Corpus, layers: Sequence[int]) -> dict[tuple[int, str], Tensor]:
    rows_of: dict[tuple[int, str], list[Tensor]] = {}

    def taking(key: tuple[int, str], shape: tuple[int, int]):
        def take(x: Tensor) -> None:
            rows = x.detach().reshape(*shape, -1)[:, 1:].flatten(0, 1)
            rows_of.setdefault(key, []).append(rows.float().cpu())

        return take

    for ids in text.batches():
        shape = (ids.shape[0], ids.shape[1])
        with exclusive(lens.model), torch.no_grad(), ExitStack() as stack:
            check_ready(lens.model)
            for layer in layers:
                block = lens.map.blocks[layer]
                for reader in block.readers:
                    if not reader.attention:
                        take = taking((layer, reader.linear.name), shape)
                        stack.enter_context(on_output(reader.linear.module, take))
                take = taking((layer, ""), shape)
                stack.enter_context(on_input(block.down.module, take))
            stack.enter_context(stopping_after(lens.map.blocks[layers[-1]].module))
            lens.map.inner(input_ids=ids.to(lens.device), use_cache=False)
    return {key: torch.cat(rows) for key, rows in rows_of.items()}
