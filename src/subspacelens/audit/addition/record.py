"""The record of the audit of one addition, `addition.json`: its schema, written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ...core.files import write_atomically
from ...core.records import EffectRecord, Estimate, ModelRecord, Number, Record, read_record
from ..record import Clean, Controls, Evidenced, TaskRecord, Test, Verdict, Written

SCHEMA = "subspacelens.addition/1"
PATCHES = ("full", "add", "mean", "random")


class VectorRecord(Record):
    """What is added: `alpha` times the vector in `file`, which is `norm` long; `given` says where
    it comes from. `cosine`: with the difference of the class means, of what either writes; None
    where the pairs carry no z."""

    file: str
    sha256: str
    dim: int = Field(ge=1)
    norm: float = Field(ge=0, le=1e100)
    alpha: Number
    cosine: Number | None
    given: dict[str, str | int | float | bool | None]


class DoseCurve(Record):
    """For each multiple `dose` of the addition, α = `alpha`: its effect in nats, the share of the
    readings `inside` nature (`usual`: of unpatched prompts), and how large it is: `relative` to the
    mean length of an activation, in standard `deviations` of nature along what is written at equal
    z, and in distances of the `classes` there (None where there are none). `leaves`: the largest α
    that stays inside nature, None where no dose leaves it; `effect_inside`: what it does there."""

    dose: list[Number]
    alpha: list[Number]
    effect: list[Number]
    inside: list[Number]
    relative: list[Number]
    deviations: list[Number] | None
    classes: list[Number] | None
    usual: Number
    leaves: Number | None
    effect_inside: Estimate | None

    @model_validator(mode="after")
    def _even(self) -> Self:
        lists = (
            self.dose, self.alpha, self.effect, self.inside, self.relative, self.deviations,
            self.classes,
        )  # fmt: skip
        if len({len(each) for each in lists if each is not None}) > 1:
            raise ValueError("a dose curve has as many of each of its numbers")
        return self


class ReaderRecord(Record):
    """A reader of the residual stream behind the site: a head's queries, keys or values, or an MLP;
    `share` of the attribution, negative where it works against the addition."""

    name: str
    share: Number


class AdditionRecord(Evidenced):
    """Schema `subspacelens.addition/1`. `effects` by the names of `PATCHES`; `no_op`: of no patch;
    `controls`: None where none were asked for; `written`: the prompts along what is written,
    without and with it.

    >>> record = result.record
    >>> record.effects["add"].fldd, record.tests["natural"].reading, record.curve.leaves
    """

    schema_: Literal["subspacelens.addition/1"] = SCHEMA
    model: ModelRecord
    task: TaskRecord
    site: str
    vector: VectorRecord
    clean: Clean
    effects: dict[str, EffectRecord]
    no_op: EffectRecord
    tests: dict[str, Test]
    controls: Controls | None = None
    verdict: Verdict
    notes: list[str]
    curve: DoseCurve
    readers: list[ReaderRecord]
    written: Written
    seconds: float = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)
    versions: dict[str, str]
    command: str


def save_addition(record: AdditionRecord, path: Path) -> None:
    write_atomically(path, record.model_dump_json(indent=1, by_alias=True).encode())


def load_addition(path: Path | str) -> AdditionRecord:
    """Reads and validates `addition.json`; raises `ResultError` as `read_record` does.

    >>> load_addition("runs/steer/L17.resid_post@S2/addition.json").verdict.label
    """
    return read_record(AdditionRecord, path, f"{SCHEMA} record")
