"""Schema `subspacelens.ioi/1`: everything that the study found, as it stands in `ioi.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from ...core.records import Estimate, ModelRecord, Record
from ..made import Made
from ..promised import Promise
from .circuit import CircuitRecord
from .claims import Claim
from .contrast import Contrast
from .controls import Control, LossRow, Selectivity, Stability
from .dormant import Dormant
from .success import Success
from .table import Row

SCHEMA = "subspacelens.ioi/1"


class Verdict(Record):
    """What the audit says of a direction; `direction` is `das` or `constructed`."""

    site: str
    direction: str
    label: str
    score: float


class Generalisation(Record):
    """The table again on pairs of another kind; the model does the task there if it prefers the
    answer."""

    kind: str
    example: str
    pairs: int
    clean_logit_diff: Estimate
    clean_top_answer: Estimate
    rows: list[Row]


class IoiRecord(Record):
    """The whole study. `contrasts`: the paper's two rules at every site, on the pairs of the table
    and on every kind of `generalisation`; `promises`: what one pass over the pairs of the audits
    says of every site before anything is fitted, `refined` by gradients along the path."""

    schema_: Literal["subspacelens.ioi/1"] = Field(default=SCHEMA, alias="schema")
    model: ModelRecord
    preset: str | None
    quick: bool
    seed: int
    sizes: dict[str, int]
    fresh_sha256: str
    clean_logit_diff: Estimate
    clean_top_answer: Estimate
    circuit: CircuitRecord
    table1: list[Row]
    contrasts: list[Contrast]
    losses: list[LossRow]
    dormant: list[Dormant]
    success: list[Success]
    generalisation: list[Generalisation]
    controls: list[Control]
    stability: list[Stability]
    selectivity: list[Selectivity]
    verdicts: list[Verdict]
    promises: list[Promise] = Field(default_factory=list)
    refined: list[Promise] = Field(default_factory=list)
    claims: list[Claim]
    seconds: float
    versions: dict[str, str]
    command: str
    made: Made | None = None

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)

    def sites_where(self, rule: str, *kinds: str, sure: bool = False) -> list[str]:
        """Sites at which a rule of `contrasts` is met on every one of these kinds of pairs; `sure`:
        by the far ends of the intervals too."""
        met = {(c.site, c.pairs) for c in self.contrasts if (c.sure if sure else c.met)}
        sites = dict.fromkeys(c.site for c in self.contrasts if c.rule == rule)
        return [site for site in sites if all((site, kind) in met for kind in kinds)]
