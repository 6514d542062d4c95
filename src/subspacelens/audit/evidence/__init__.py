"""The tests of the audit, each a question with a statistic, an interval, a control and a reading.

What each asks and where it fails is in the documentation (docs/audit.md). E(patch) is the mean
paired drop of the logit difference in nats; V the subspace, P_R and P_N its parts. `TESTS` names
them with the smallest budget that runs them.
"""

from __future__ import annotations

from collections.abc import Callable

from ..record import Test
from . import choice, downstream, effects, elsewhere, landing, natural, nature, path, refits
from .case import Case, Natural, Setting

BUDGETS = ("fast", "standard", "full")

TESTS: dict[str, tuple[str, Callable[[Case], Test]]] = {
    "full_component": ("fast", effects.full_component),
    "row_effect": ("fast", effects.row_effect),
    "null_effect": ("fast", effects.null_effect),
    "read_source": ("fast", effects.read_source),
    "covariation": ("fast", nature.covariation),
    "natural": ("fast", natural.natural),
    "beyond": ("fast", natural.beyond),
    "acting": ("fast", natural.acting),
    "comovement": ("fast", natural.comovement),
    "chance": ("fast", choice.chance),
    "support": ("standard", nature.support),
    "amplification": ("standard", nature.amplification),
    "dormancy": ("standard", nature.dormancy),
    "separation": ("standard", nature.separation),
    "natural_range": ("standard", landing.natural_range),
    "hidden_pathway": ("standard", downstream.hidden_pathway),
    "off_manifold": ("standard", landing.off_manifold),
    "path": ("standard", path.path),
    "gradient_agreement": ("standard", choice.gradient_agreement),
    "selectivity": ("standard", elsewhere.selectivity),
    "unrelated_text": ("standard", elsewhere.unrelated_text),
    "generalisation": ("standard", effects.generalisation),
    "stability": ("full", refits.stability),
    "shuffled_labels": ("full", refits.shuffled_labels),
    "vacuity": ("full", refits.vacuity),
}

__all__ = ["BUDGETS", "TESTS", "Case", "Natural", "Setting"]
