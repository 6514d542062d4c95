"""The record of the facts study, `facts.json`: raw outcomes of every pair, nothing averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..core.records import ModelRecord, read_record
from ..tasks.facts import Fact
from .made import Made
from .promised import Slopes

PATCHES = ("v", "full", "row", "null", "read_row", "read_null", "edit")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Tried(Strict):
    """One patch of many pairs. `flips`: the most likely token became the source's. `logit_diff`:
    logit(base's object) - logit(source's object) after it, in nats."""

    flips: list[bool]
    logit_diff: list[float]


class PairRecord(Strict):
    relation: str
    base: str
    source: str
    answer: str
    target: str

    @classmethod
    def of(cls, base: Fact, source: Fact) -> PairRecord:
        return cls(
            relation=base.relation,
            base=base.text,
            source=source.text,
            answer=base.answer,
            target=source.answer,
        )


class Shape(Strict):
    """‖P_N v‖, |cos(Δ, P_N v)| and |cos(Δ, P_R v)| of every pair, and their means over random v."""

    null_norm: list[float]
    cos_null: list[float]
    cos_row: list[float]
    random_null_norm: float
    random_cos_null: float


class LayerRecord(Strict):
    """`paraphrases[patch]` has an outcome for each paraphrased pair of the record; `others`: each
    pair patched along the direction of another pair of its relation; `slopes`: what the first-order
    theory has for each pair at its base prompt."""

    layer: int
    stream: str
    patches: dict[str, Tried]
    shape: Shape | None
    edit_variance: list[float] | None
    condition: float | None
    tokens: int | None
    shrinkage: float | None
    paraphrases: dict[str, Tried]
    others: Tried
    slopes: Slopes | None = None


class SharedRecord(Strict):
    """One subspace of `dim` dimensions for a whole relation, fitted on pairs of one half of its
    facts (`train`) and tried on pairs of the other half (`test`), beside the full component."""

    relation: str
    layer: int
    dim: int
    train: Tried
    test: Tried
    test_full: Tried


class FactsRecord(Strict):
    """Schema `subspacelens.facts/1`. `units[i]`: the base prompt of pair i, as a number;
    `residual[layer]`: the whole residual stream after that layer patched."""

    format: Literal["subspacelens.facts/1"] = "subspacelens.facts/1"
    model: ModelRecord
    facts: int
    known: int
    pairs: list[PairRecord]
    units: list[int]
    clean: list[float]
    paraphrase_of: list[int]
    paraphrase_known: list[bool]
    layers: list[LayerRecord]
    residual: dict[str, Tried]
    shared: list[SharedRecord]
    corpus: str
    recipe: dict[str, Any]
    seconds: float
    command: str
    made: Made | None = None


def load_facts_record(path: Path | str) -> FactsRecord:
    """Raises `ResultError` naming the file and the first field that is wrong."""
    return read_record(FactsRecord, path, "record of facts")
