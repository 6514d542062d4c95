"""`trained_truth`: fits and the audit on models in which the place of the variable is known.

What is true of a subspace U is told by interventions, never by the audit's own tests.

*Where z was trained to live* everything but V was trained to do nothing: at V, behind an MLP along
what V writes, and in an MLP that writes straight into a stream where V lies. Of the write δ of the
patch of U, c m is the part that nature's own change m along V would have made, c between 0 and 1.
*Faithful*: c m has at least `MOST` of the effect and the rest at most `LEAST`; *illusory*: the
other way round; else *mixed*.

*At other sites of that column* only one side can be told. Before V and beside it V is held at its
clean value while U is patched; after V the source's prompt is run with V as in the base. If at
least `MOST` of U's effect is still there, it has nothing to do with z; and where the whole
component then does at most `LEAST` of it, U is *illusory*. Anything else is *unknown*.

At either, a subspace of an FLDD below the audit's smallest is *idle*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..audit import judge
from ..audit.controls.words import USED
from ..audit.verdict import SMALLEST_FLDD
from ..core.errors import SubspaceError, TaskError
from ..core.progress import track
from ..core.site import Site
from ..core.statistics import Units, proportion
from ..engine.buckets import place_of
from ..engine.capture import Capture
from ..engine.patches import Full, SubspacePatch
from ..engine.replay import Replay
from ..engine.task_capture import TaskCapture, capture_task
from ..fit import FITS
from ..fit.subspace import Subspace, made_by
from ..measure.effects import drops_of
from ..model.hooks import at_columns
from .truth import TrainedModel, load_trained, parity_task, trained_names

PAIRS = 128
MOST, LEAST = 2 / 3, 1 / 3
RIDGE = 1e-3
PLAIN = ("das", "mean-difference", "probe", "gradient", "pca", "random")
ORDER = {"head_z": 0, "attn_out": 1, "mlp_act": 2, "mlp_out": 3, "resid_post": 4}
"""Which stream of a block comes first."""


@dataclass(frozen=True, eq=False)
class Known:
    """A place where it is known what acts: what is patched passes `weight` (d, dim), is added at
    `replay`, and acts there by how much of `written` (d, k) it holds; nature writes `amounts` of
    that, (n, k)."""

    replay: Replay
    weight: Tensor = field(repr=False)
    written: Tensor = field(repr=False)
    amounts: Tensor = field(repr=False)

    def amount_of(self, delta: Tensor, rest: Tensor) -> Tensor:
        """c (n,): which part of nature's amounts a change (n, d) holds, cut to [0, 1], read along
        what all else that changes in nature, `rest` (n, d), leaves alone: generalised least
        squares."""
        varies = (rest.T @ rest).double()
        varies += RIDGE * varies.diagonal().mean() * torch.eye(len(varies))
        written = self.written.double()
        reads = torch.linalg.solve(varies, written)
        reads = (reads @ torch.linalg.inv(written.T @ reads)).float()
        size = self.amounts.square().sum(1).clamp(min=torch.finfo(delta.dtype).tiny)
        return ((delta @ reads * self.amounts).sum(1) / size).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Case:
    """A trained model, the captures of its task at all sites of its column, and what V changes."""

    trained: TrainedModel
    captures: TaskCapture = field(repr=False)

    @property
    def test(self) -> Capture:
        return self.captures.test

    def known(self, site: Site) -> Known | None:
        """What is true at a site; None where it is not known."""
        trained, truth = self.trained, self.trained.basis
        own = self.test.difference(trained.site) @ truth
        block = replace(trained.site, stream="mlp_act", head=None)
        if trained.site == block and site in (block, trained.behind):
            written = trained.lens.map.linear_writer(block) @ truth
        elif site == trained.site or (site == block and trained.site == trained.behind):
            written = truth
        else:
            return None
        if site != block:
            return Known(self.test.at(site), torch.eye(len(written)), written, own)
        weight = trained.lens.map.linear_writer(block)
        if trained.site != block:
            own = self.test.difference(block) @ weight.T @ truth
        return Known(self.test.at(trained.behind), weight, written, own)

    def parts(self, subspace: Subspace, known: Known) -> tuple[float, float]:
        """Which share of the effect c m has, and which the rest."""
        there = self.test.difference(subspace.site)
        delta = there @ subspace.basis @ subspace.basis.T @ known.weight.T
        rest = there @ known.weight.T - known.amounts @ known.written.T
        natural = known.amount_of(delta, rest)[:, None] * (known.amounts @ known.written.T)
        drops = drops_of(known.replay, torch.stack([delta, natural, delta - natural])).mean(1)
        return float(drops[1] / drops[0]), float(drops[2] / drops[0])

    def without_z(self, subspace: Subspace) -> tuple[float, float]:
        """Of the effect of U, how much U and how much the whole component have without z."""
        replay = self.test.at(subspace.site)
        patches = SubspacePatch(subspace.basis), Full()
        effect = drops_of(replay, patches[0].delta(replay.base, replay.source)[None]).mean()
        if _place(subspace.site) > _place(self.trained.site):
            source = self._unchanged(subspace.site)
            deltas = torch.stack([p.delta(replay.base, source) for p in patches])
            drops = drops_of(replay, deltas).mean(1)
        else:
            clean = self._held(subspace.site, 0 * replay.base)
            deltas = (patch.delta(replay.base, replay.source) for patch in patches)
            drops = [float((clean - self._held(subspace.site, x)).mean()) for x in deltas]
        return float(drops[0] / effect), float(drops[1] / effect)

    def _held(self, site: Site, delta: Tensor) -> Tensor:
        """Logit differences (n,) with `delta` added at a site and V held at its clean value."""
        changes = {site: lambda x: x + delta, self.trained.site: self._hold}
        return self._run("base", changes)

    def _unchanged(self, site: Site) -> Tensor:
        """The activation (n, dim) at a site of the sources, run with V as in their bases."""
        seen: list[Tensor] = []
        self._run("source", {self.trained.site: self._hold, site: seen.append})
        return seen[0]

    def _hold(self, x: Tensor) -> Tensor:
        basis = self.trained.basis
        return x + ((self.test.base[self.trained.site] - x) @ basis) @ basis.T

    def _run(self, which: str, changes: Mapping[Site, Callable]) -> Tensor:
        lens, pairs = self.trained.lens, self.test.pairs
        ids = torch.tensor([getattr(pair, which).ids for pair in pairs])
        with ExitStack() as stack, torch.no_grad():
            for site, change in changes.items():
                columns = torch.tensor([pair.base.columns[site.label] for pair in pairs])
                part = lens.map.head_slice(site)
                place, module = place_of(lens.map, site)
                stack.enter_context(at_columns(place, module, columns, change, part=part))
            logits = lens.model(ids).logits[:, -1]
        answers = self.test.at(self.trained.site).answers
        return logits.gather(1, answers).double() @ torch.tensor([1.0, -1.0]).double()


def trained_truth(
    names: Sequence[str] | None = None, *, elsewhere: bool = True, pairs: int = PAIRS, seed: int = 0
) -> list[dict]:
    """Fits at the place where z was trained to live, and, with `elsewhere`, at every other site of
    its column, each audited with the budget `fast`; `names` of `trained_names`, or all.

    Besides the fits there is `truth`, V itself. One row a subspace, made of JSON types: `model`,
    `site`, `fit`, `dim`, `known` (the truth is known on both sides), `fldd` and `whole_fldd` of it
    and of the whole component, `cosine` (mean squared cosine with V, None elsewhere), `natural` and
    `beyond` (shares of the effect, where `known`), `without_z` and `whole_without_z` (elsewhere),
    `truth`, the audit's `verdict` and `code`, None for what is idle, and `right`: None where the
    truth is mixed, idle or unknown or the verdict says neither, else whether they agree.
    `trained_rates` counts them.

    >>> rows = trained_truth(["mlp"], elsewhere=False)
    >>> {row["fit"]: (row["truth"], row["verdict"]) for row in rows}
    """
    rows = []
    for name in track(names or trained_names(), "trained models"):
        trained = load_trained(name)
        sites = sites_of_column(trained) if elsewhere else [trained.site]
        task = parity_task(pairs, pairs, seed)
        wanted = [*sites, trained.site, trained.behind]
        case = Case(trained, capture_task(trained.lens, task, wanted))
        rows += [
            trained_row(case, fit, found) for site in sites for fit, found in _found(case, site)
        ]
    return rows


def trained_rates(rows: Sequence[dict]) -> dict[str, dict]:
    """Of the rows of `trained_truth` where the truth is known on both sides and is faithful or
    illusory, by fit: how many there are, and shares of right, wrong and open verdicts, each with a
    95 % interval over models."""
    judged = [r for r in rows if r["known"] and r["truth"] in ("faithful", "illusory")]
    rates = {}
    for fit in dict.fromkeys(row["fit"] for row in judged):
        chosen = [row for row in judged if row["fit"] == fit]
        units = Units.of(row["model"] for row in chosen)
        outcomes = {"right": True, "wrong": False, "open": None}
        rates[fit] = {"of": len(chosen)} | {
            outcome: proportion(
                np.array([row["right"] is value for row in chosen]), units
            ).model_dump()
            for outcome, value in outcomes.items()
        }
    return rates


def sites_of_column(trained: TrainedModel) -> list[Site]:
    """The trained site, and all others of its column at which something can act."""
    label, blocks = trained.site.label, trained.lens.map.blocks
    every = [
        site
        for layer, block in enumerate(blocks[: None if label == "END" else -1])
        for site in (
            *(Site(layer, "head_z", label, head=head) for head in range(block.n_heads)),
            Site(layer, "mlp_act", label),
            Site(layer, "resid_post", label),
        )
    ]
    return [trained.site, *(site for site in every if site != trained.site)]


def _found(case: Case, site: Site) -> Iterator[tuple[str, Subspace]]:
    """What each fit finds at a site, and what was trained there."""
    lens, train = case.trained.lens, case.captures.train
    if site == case.trained.site:
        yield "truth", made_by(lens, site, case.trained.basis, "", {"method": "truth"})
    for fit in map(FITS.__getitem__, PLAIN):
        dim = 1 if fit.between else case.trained.basis.shape[1]
        with suppress(SubspaceError, TaskError):
            yield fit.name, fit(lens, train, site, dim=dim)


def trained_row(case: Case, fit: str, subspace: Subspace) -> dict:
    site, replay = subspace.site, case.test.at(subspace.site)
    effects = replay.effects({"own": SubspacePatch(subspace.basis), "whole": Full()})
    fldd, whole = effects["own"].fldd.value or 0.0, effects["whole"].fldd.value
    known = case.known(site)
    row = {
        "model": case.trained.name, "site": str(site), "fit": fit, "dim": subspace.dim,
        "known": known is not None, "fldd": fldd, "whole_fldd": whole, "cosine": None,
        "natural": None, "beyond": None, "without_z": None, "whole_without_z": None,
        "truth": "idle", "verdict": None, "code": None, "right": None,
    }  # fmt: skip
    if site == case.trained.site:
        shared = case.trained.basis.T @ subspace.basis
        row["cosine"] = float(shared.square().sum() / min(shared.shape))
    if fldd < SMALLEST_FLDD:
        return row
    row |= truth_of(case, subspace)
    verdict = judge(case.trained.lens, case.captures, subspace, budget="fast").verdict
    row["verdict"], row["code"] = verdict.label, verdict.code
    row["right"] = _agree(row["truth"], verdict.label)
    return row


def truth_of(case: Case, subspace: Subspace) -> dict:
    """What interventions say of a subspace that is not idle: its `truth` (faithful, illusory, mixed
    or unknown), and the shares that it rests on (see `trained_truth`)."""
    known = case.known(subspace.site)
    if known is not None:
        natural, beyond = case.parts(subspace, known)
        illusory = natural <= LEAST and beyond >= MOST
        faithful = natural >= MOST and beyond <= LEAST
        truth = "faithful" if faithful else "illusory" if illusory else "mixed"
        return {"natural": natural, "beyond": beyond, "truth": truth}
    own, whole = case.without_z(subspace)
    truth = "illusory" if own >= MOST and abs(whole) <= LEAST else "unknown"
    return {"without_z": own, "whole_without_z": whole, "truth": truth}


def _agree(truth: str, label: str) -> bool | None:
    """Whether a verdict is right; None where truth or verdict is neither."""
    said = "faithful" if label in USED else label
    both = ("faithful", "illusory")
    return said == truth if said in both and truth in both else None


def _place(site: Site) -> tuple[int, int]:
    return site.layer, ORDER[site.stream]
