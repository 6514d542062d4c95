"""The record of one audit, `audit.json`: its schema, and how it is written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from ..core.files import write_atomically
from ..core.records import Estimate, ModelRecord, Record, read_record

SCHEMA = "subspacelens.audit/1"


PATCHES = ("full", "subspace", "row", "null", "read_row", "read_null", "random", "reversed")


METRICS = ("nats", "fldd", "iia", "iia_pair")


class Test(Estimate):
    """One piece of evidence: its statistic, what the same statistic is under the control
    (a random direction, or chance; None where it has none), and what it says in words."""

    control: float | None = None
    reading: str


class TaskRecord(Record):
    name: str
    train_pairs: int
    test_pairs: int
    held_out_pairs: int
    train_sha256: str
    test_sha256: str
    labels: list[str]


class SubspaceRecord(Record):
    file: str
    dim: int
    fit: dict[str, str | int | float | bool | None]


class Clean(Record):
    """`logit_diff`: mean logit(answer) - logit(target) in nats. `top_answer`: share of prompts
    whose most likely next token, over the whole vocabulary, is the answer."""

    logit_diff: Estimate
    top_answer: Estimate


class Verdict(Record):
    """`score` is the weight of evidence for an illusion, 0 to 1."""

    label: Literal["faithful", "illusory", "undetermined"]
    score: float
    reasons: list[str]
    assumptions: list[str]
    objection: str


class Scatter(Record):
    """Values of one quantity for the natural prompts, by class of the feature."""

    z0: list[float]
    z1: list[float]


class DoseResponse(Record):
    """Effect in nats of writing `dose` times what the subspace patch writes; `marks` are the
    doses of the named patches."""

    dose: list[float]
    effect: list[float]
    marks: dict[str, float]


class SupportCurve(Record):
    """For each share of explained natural variance: number of components, share of the
    subspace's squared norm on the support, and FLDD of the on- and off-support part."""

    explained: list[float]
    components: list[int]
    share: list[float]
    on: list[float]
    off: list[float]


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


class AuditRecord(Record):
    """Schema `subspacelens.audit/1`. `effects[patch][metric]`; `no_op[metric]`."""

    schema_: Literal["subspacelens.audit/1"] = SCHEMA
    model: ModelRecord
    task: TaskRecord
    site: str
    subspace: SubspaceRecord
    clean: Clean
    effects: dict[str, dict[str, Estimate]]
    no_op: dict[str, Estimate]
    tests: dict[str, Test]
    verdict: Verdict
    notes: list[str]
    figures: Figures
    seconds: float
    peak_rss_bytes: int
    versions: dict[str, str]
    command: str

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: "schema" if name == "schema_" else name,
        populate_by_name=True,
    )


def save_audit(record: AuditRecord, path: Path) -> None:
    write_atomically(path, record.model_dump_json(indent=1, by_alias=True).encode())


def load_audit(path: Path | str) -> AuditRecord:
    """Reads and validates `audit.json`; raises `ResultError` as `read_record` does."""
    return read_record(AuditRecord, path, f"{SCHEMA} record")
