"""The table of effects: every patch on many fresh pairs, a few of them in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...core.progress import track
from ...core.records import Estimate, Record
from ...core.site import Site
from ...core.statistics import mean, proportion, ratio
from ...engine.capture import capture
from ...engine.effect import Effect
from ...engine.outcomes import Outcomes
from ...engine.patches import Patch
from ...model.lens import LensModel
from ...tasks import PairSet

CHUNK = 256


class Paper(Record):
    """What the paper has for GPT-2 small in the corresponding row."""

    fldd: float
    iia: float


class Row(Record):
    """One patch at one site. `iia_no_op`: IIA of no patch at all on the same pairs."""

    site: str
    patch: str
    pairs: int
    nats: Estimate
    fldd: Estimate
    iia: Estimate
    iia_no_op: Estimate
    paper: Paper | None = None


PAPER = {
    ("mlp_act", "full"): (-0.080, 0.000),
    ("mlp_act", "v_MLP"): (0.467, 0.042),
    ("mlp_act", "v_MLP row"): (0.135, 0.002),
    ("mlp_act", "v_MLP null"): (0.000, 0.000),
    ("resid_post", "full"): (1.236, 0.548),
    ("resid_post", "v_resid"): (1.407, 0.748),
    ("resid_post", "v_resid along readers"): (1.275, 0.631),
    ("resid_post", "v_resid null"): (0.139, 0.004),
    ("resid_post", "v_grad"): (1.115, 0.451),
    ("resid_post", "v_grad along readers"): (1.0449, 0.3865),
    ("resid_post", "v_grad null"): (0.0220, 0.0035),
    ("resid_post", "v_mean"): (1.1933, 0.5230),
    ("resid_post", "v_mean along readers"): (1.1214, 0.4540),
}
"""Table 1 of arXiv 2311.17030 (GPT-2 small, MLP 8 and resid_post 8 at END); the last five rows are
not in it and come from the authors' released run."""


@dataclass(frozen=True)
class Evaluation:
    """Effects of patches, by site and name, over one set of pairs. `activations`: base and source
    (n, dim) at the sites that were to be kept."""

    pairs: PairSet
    unpatched: Outcomes
    effects: dict[Site, dict[str, Effect]] = field(repr=False)
    activations: dict[Site, tuple[Tensor, Tensor]] = field(repr=False)

    @property
    def clean(self) -> tuple[Estimate, Estimate]:
        """Mean logit difference in nats, and share of prompts whose top token is the answer."""
        answers = np.array([pair.answer for pair in self.pairs.pairs])
        right = self.unpatched.top.numpy() == answers
        return mean(self.unpatched.logit_diff, self.pairs.units), proportion(
            right, self.pairs.units
        )

    def drop(self, site: Site, patch: str) -> np.ndarray:
        """Nats by which each pair's logit difference falls."""
        return self.effects[site][patch].drop

    def share(self, site: Site, patch: str, of: str | None) -> Estimate:
        """Effect of a patch (0 for one that does not exist) as a share of another's at the site,
        or, for None, of the clean logit difference: then it is FLDD."""
        effect = self.effects[site].get(patch)
        if effect is None:
            return Estimate(value=0.0, low=0.0, high=0.0)
        if of is None:
            return effect.fldd
        return ratio(effect.drop, self.drop(site, of), self.pairs.units)

    def rows(self, *, paper: bool = False) -> list[Row]:
        """Every patch, with intervals; `paper` puts the paper's numbers beside those at END."""
        no_op = Effect(self.pairs, self.unpatched, self.unpatched).iia
        rows = []
        for site, named in self.effects.items():
            for name, effect in named.items():
                known = PAPER.get((site.stream, name)) if paper and site.label == "END" else None
                rows.append(
                    Row(
                        site=str(site),
                        patch=name,
                        pairs=len(self.pairs),
                        nats=effect.nats,
                        fldd=effect.fldd,
                        iia=effect.iia,
                        iia_no_op=no_op,
                        paper=Paper(fldd=known[0], iia=known[1]) if known else None,
                    )
                )
        return rows


def evaluate(
    lens: LensModel,
    pairs: PairSet,
    patches: Mapping[Site, Mapping[str, Patch | None]],
    *,
    keep: Collection[Site] = (),
    memory: int | None = None,
) -> Evaluation:
    """Applies every patch to every pair, `CHUNK` pairs at a time; None patches are left out."""
    clean: list[Outcomes] = []
    outcomes: dict[Site, dict[str, list[Outcomes]]] = {site: {} for site in patches}
    kept: dict[Site, list[tuple[Tensor, Tensor]]] = {site: [] for site in keep}
    for start in track(range(0, len(pairs), CHUNK), f"patches on {pairs.split}"):
        captured = capture(lens, pairs[start : start + CHUNK], patches, memory=memory)
        clean.append(captured.clean)
        for site, named in patches.items():
            present = {name: patch for name, patch in named.items() if patch is not None}
            found = captured.at(site).outcomes_of(present, decided=True)
            for name, each in found.items():
                outcomes[site].setdefault(name, []).append(each)
        for site in keep:
            kept[site].append((captured.base[site], captured.source[site]))
    unpatched = _joined(clean)
    return Evaluation(
        pairs,
        unpatched,
        {
            site: {name: Effect(pairs, unpatched, _joined(x)) for name, x in named.items()}
            for site, named in outcomes.items()
        },
        {
            site: (torch.cat([base for base, _ in x]), torch.cat([source for _, source in x]))
            for site, x in kept.items()
        },
    )


def _joined(pieces: list[Outcomes]) -> Outcomes:
    return Outcomes(
        torch.cat([piece.logit_diff for piece in pieces]),
        torch.cat([piece.top for piece in pieces]),
    )
