"""The record of one audit, `audit.json`: its schema, and how it is written and read back."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import polars as pl
from pydantic import ConfigDict, Field, field_validator, model_validator

from ..core.files import write_atomically
from ..core.records import EffectRecord, Estimate, ModelRecord, Number, Record, read_record
from ..engine.likely import Likely
from ..measure.hypotheses import Agreement

SCHEMA = "subspacelens.audit/5"
EARLIER = tuple(f"subspacelens.audit/{number}" for number in (1, 2, 3, 4))


PATCHES = ("full", "subspace", "row", "null", "read_row", "read_null", "random", "reversed")


class Test(Estimate):
    """One piece of evidence: its statistic, what the same statistic is under the control
    (a random direction, or chance; None where it has none), and what it says in words."""

    control: Number | None = None
    reading: str


class TaskRecord(Record):
    name: str
    train_pairs: int
    test_pairs: int
    held_out_pairs: int
    train_sha256: str
    test_sha256: str
    labels: list[str]


How = dict[str, str | int | float | bool | dict[str, Number] | None]
"""How a subspace was found: settings and facts, of which one may be numbers by name, such as what
other numbers of dimensions did (`best_dim`)."""


class SubspaceRecord(Record):
    file: str
    dim: int
    fit: How


class Clean(Record):
    """`logit_diff`: mean logit(answer) - logit(target) in nats. `top_answer`: share of prompts
    whose most likely next token, over the whole vocabulary, is the answer."""

    logit_diff: Estimate
    top_answer: Estimate


VerdictName = Literal["faithful", "partial", "mixed", "illusory", "undetermined"]
VerdictCode = Literal[
    "holds", "part", "mixed", "fails", "conflict", "unsure", "void", "chance", "idle", "whole",
    "small", "task", "few", "leak", "controls", "dose",
]  # fmt: skip
Told = Literal["faithful", "illusory", "undetermined"]
AxisLabel = Literal["faithful", "illusory", "undetermined", "idle", "unjudged"]


class Axis(Record):
    """One axis of a subspace of several dimensions, or the last `dimensions` of them together:
    `share` of the subspace's effect that a patch of it alone has, and what it is by itself; *idle*
    if it does nothing, *unjudged* if it does too little to say."""

    number: int = Field(ge=1)
    dimensions: int = Field(ge=1)
    share: Estimate
    label: AxisLabel


class MetricRecord(Record):
    """Another metric than the logit difference, which the tests compare: its mean without a patch,
    and its mean change, patched less clean, by patch."""

    name: str
    unit: str
    clean: Estimate
    changes: dict[str, Estimate]


class OverTemplates(Record):
    """FLDD of the subspace patch with an interval over the `count` templates of the test pairs."""

    count: int = Field(ge=3)
    fldd: Estimate


class Verdict(Record):
    """`code` says why, in one word of `VerdictCode`; `score` is the weight of evidence for an
    illusion, 0 to 1."""

    label: VerdictName
    code: VerdictCode
    score: float = Field(ge=0, le=1)
    reasons: list[str]
    assumptions: list[str]
    objection: str


class Spiked(Record):
    """How one planted subspace was judged: `kind` is the truth (faithful, illusory or mixed),
    `share` how much of what it writes does not go through what the model uses. `model` counts the
    planted models."""

    model: int
    kind: str
    share: Number | None
    fldd: Number | None
    label: VerdictName


class Controls(Record):
    """Spike-in controls: how the audit judged planted subspaces at the very site.

    Shares are of planted models, with Clopper and Pearson's intervals, among spikes that do enough
    to be judged: `false_faithful` illusions called faithful or partial, `false_illusory` faithful
    ones called illusory, `right_faithful`, `right_illusory`. `likelihood_ratio`: how much likelier
    this verdict is for a spike of its kind than for one of the other; `borne_out`: whether that is
    enough, None for a verdict that says neither. `sees`: the smallest share of illusion that four
    of five spikes betray. `void` says why this is no calibration, if it is none.
    """

    spikes: list[Spiked]
    void: str
    false_faithful: Estimate
    false_illusory: Estimate
    right_faithful: Estimate
    right_illusory: Estimate
    likelihood_ratio: Number | None
    sees: Number | None
    borne_out: bool | None

    @classmethod
    def without(cls, reason: str) -> Controls:
        """None were planted."""
        none = Estimate(value=None)
        return cls(
            spikes=[], void=reason, false_faithful=none, false_illusory=none, right_faithful=none,
            right_illusory=none, likelihood_ratio=None, sees=None, borne_out=None,
        )  # fmt: skip


class Scatter(Record):
    """Values of one quantity for the natural prompts, by class of the feature."""

    z0: list[Number]
    z1: list[Number]


def _check_even(**lists: Sized) -> None:
    if len({len(each) for each in lists.values()}) > 1:
        uneven = ", ".join(f"{len(each)} of {name}" for name, each in lists.items())
        raise ValueError(f"as many of each are needed, not {uneven}")


class DoseResponse(Record):
    """Effect in nats of writing `dose` times what the subspace patch writes; `marks` are the
    doses of the named patches."""

    dose: list[Number]
    effect: list[Number]
    marks: dict[str, Number]

    @model_validator(mode="after")
    def _even(self) -> Self:
        _check_even(dose=self.dose, effect=self.effect)
        return self


class SupportCurve(Record):
    """For each share of explained natural variance: number of components, share of the subspace's
    squared norm on the support, and FLDD of the on- and off-support part, None where the model has
    no logit difference to lose."""

    explained: list[Number]
    components: list[int]
    share: list[Number]
    on: list[Number | None]
    off: list[Number | None]

    @model_validator(mode="after")
    def _even(self) -> Self:
        _check_even(
            explained=self.explained,
            components=self.components,
            share=self.share,
            on=self.on,
            off=self.off,
        )
        return self


class Written(Record):
    """Projection on the direction that the subspace writes, in natural activations (by class)
    and in patched ones."""

    natural: Scatter
    patched: Scatter


class Figures(Record):
    """What the report's pictures are drawn from."""

    row_projection: Scatter | None
    null_projection: Scatter | None
    projection: Scatter
    dose_response: DoseResponse
    written: Written
    support: SupportCurve


ExampleKind = Literal["typical", "extreme", "failing"]


class PairTable(Record):
    """Every pair that was judged on, a column each: `pair` is its number in the test split, `clean`
    and `patched`, by patch, are logit differences in nats. `base_marks` and `source_marks` are the
    characters [start, end) that the site's label stands for."""

    WORDS: ClassVar = ("base", "source", "template", "answer", "target")
    PATCHES: ClassVar = ("full", "subspace", "row")

    pair: list[int]
    base: list[str]
    source: list[str]
    base_marks: list[list[tuple[int, int]]]
    source_marks: list[list[tuple[int, int]]]
    template: list[str]
    answer: list[str]
    target: list[str]
    clean: list[Number]
    patched: dict[str, list[Number]]

    @model_validator(mode="after")
    def _even(self) -> Self:
        columns = {name: getattr(self, name) for name in type(self).model_fields}
        _check_even(**columns | columns.pop("patched"))
        return self


class PairExample(Record):
    """A pair to show, by its `row` in the table: why, and the likeliest next tokens with their
    probabilities, likeliest first, under no patch (`clean`) and under each of the others."""

    row: int
    kind: ExampleKind
    tops: dict[str, list[Likely]]


class Evidenced(Record):
    """What the records of audits have in common: `tests` and `effects` by name."""

    if TYPE_CHECKING:
        effects: dict[str, EffectRecord]

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: "schema" if name == "schema_" else name,
        populate_by_name=True,
    )

    @field_validator("tests", check_fields=False)
    @classmethod
    def _probable(cls, tests: dict[str, Test]) -> dict[str, Test]:
        chance = tests.get("chance")
        if chance is not None and chance.value is not None and not 0 <= chance.value <= 1:
            raise ValueError(f"chance: a p-value lies between 0 and 1, not at {chance.value:g}")
        return tests

    def effect(self, patch: str) -> EffectRecord:
        """What a patch does; without values where it was not tried."""
        return self.effects.get(patch) or EffectRecord.absent()


class AuditRecord(Evidenced):
    """Schema `subspacelens.audit/5`. `effects` by the names of `PATCHES`; `no_op`: of no patch;
    `over_templates`: None with fewer than three; `metric`: None where it is the logit difference;
    `hypotheses`: by the variables of which the pairs say what they predict; `controls`: None where
    none were asked for; `pairs`: the pairs that were judged on, one by one; `examples`: those of
    them that are shown. `frame()` and `tests_frame()` are tables of pairs and of tests.

    >>> record = result.record
    >>> record.effects["subspace"].fldd, record.tests["full_component"].reading
    """

    schema_: Literal["subspacelens.audit/5"] = SCHEMA
    model: ModelRecord
    task: TaskRecord
    site: str
    subspace: SubspaceRecord
    clean: Clean
    effects: dict[str, EffectRecord]
    no_op: EffectRecord
    over_templates: OverTemplates | None = None
    metric: MetricRecord | None = None
    hypotheses: dict[str, Agreement] = Field(default_factory=dict)
    tests: dict[str, Test]
    axes: list[Axis]
    controls: Controls | None = None
    verdict: Verdict
    notes: list[str]
    figures: Figures
    pairs: PairTable
    examples: list[PairExample]
    seconds: float = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)
    versions: dict[str, str]
    command: str

    @field_validator("schema_", mode="before")
    @classmethod
    def _current(cls, schema: object) -> object:
        if schema in EARLIER:
            raise ValueError(f"{schema} is of an earlier version; run the audit again")
        return schema

    @model_validator(mode="after")
    def _of_the_pairs(self) -> Self:
        bad = [each.row for each in self.examples if not 0 <= each.row < len(self.pairs.pair)]
        if bad:
            raise ValueError(f"examples: there is no pair in row {bad[0]}")
        return self

    def frame(self) -> pl.DataFrame:
        """One row a pair that was judged on, polars (`.to_pandas()` where pandas and pyarrow are
        installed): `pair`, its number in the test split, prompts, template, answer and target, and
        the logit difference in nats without a patch (`clean`) and under that of the whole component
        (`full`), the `subspace` and its `row` part, null where it has none.

        >>> record.frame().filter(pl.col("subspace") > 0)  # the pairs that keep their answer
        """
        pairs = self.pairs
        words = {name: getattr(pairs, name) for name in PairTable.WORDS}
        nothing = [None] * len(pairs.pair)
        numbers = {name: pairs.patched.get(name, nothing) for name in PairTable.PATCHES}
        columns = {"pair": pairs.pair, **words, "clean": pairs.clean, **numbers}
        kinds = dict.fromkeys(("clean", *numbers), pl.Float64)
        return pl.DataFrame(columns, schema_overrides=kinds)

    def tests_frame(self) -> pl.DataFrame:
        """One row a test: `test`, `value` with its 95 % interval `low` and `high`, `control`,
        `reading`."""
        numbers = ("value", "low", "high", "control")
        columns = {
            "test": list(self.tests),
            **{name: [getattr(each, name) for each in self.tests.values()] for name in numbers},
            "reading": [each.reading for each in self.tests.values()],
        }
        return pl.DataFrame(columns, schema_overrides=dict.fromkeys(numbers, pl.Float64))


def save_audit(record: AuditRecord, path: Path) -> None:
    write_atomically(path, record.model_dump_json(indent=1, by_alias=True).encode())


def load_audit(path: Path | str) -> AuditRecord:
    """Reads and validates `audit.json`; raises `ResultError` as `read_record` does.

    >>> load_audit("runs/mine/L18.mlp_act@S2/audit.json").verdict.label
    'illusory'
    """
    return read_record(AuditRecord, path, f"{SCHEMA} record")
