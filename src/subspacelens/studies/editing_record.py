"""The record of the editing study, `editing.json`: raw outcomes of every fact and layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..core.records import ModelRecord, read_record
from .facts_record import PairRecord, Strict, Tried
from .made import Made
from .promised import Slopes


class Scores(Strict):
    """One intervention on every fact; probabilities of the next token after its prompt. `new` and
    `true`: of the new and the old object; `top`: the new one is the most likely of all."""

    new: list[float]
    true: list[float]
    top: list[bool]


class SideEffects(Strict):
    """What an edit does elsewhere, a fact a row. `paraphrase`: share of paraphrases in which the
    new object is likelier than the old; `neighbour`: share of prompts about other subjects in
    which their own object is likelier than the new; `neighbour_top`: in which it is the most
    likely of all; `essence`: nats by which the continuation of "{subject} is a" moved.
    None where a fact has no such prompts."""

    paraphrase: list[float | None]
    neighbour: list[float | None]
    neighbour_top: list[float | None]
    essence: list[float]


class EditLayer(Strict):
    """One layer. `zero` is the zero-setting patch made from the ROME edit, at the subject's token;
    `zero_everywhere` the same at all tokens; `zero_row` with the row part of its direction alone.
    `trace`: the indirect effect of the layer's state at the subject's last token; `slopes`: see
    `LayerRecord`."""

    layer: int
    rome: Scores
    side: SideEffects
    zero: Scores
    zero_everywhere: Scores
    zero_row: Scores
    cos_vb: list[float]
    ratio: list[float]
    sign: list[int]
    patch: Tried
    full: Tried
    trace: list[float]
    trace_mlp: list[float]
    condition: float | None
    slopes: Slopes | None = None


class EditingRecord(Strict):
    """Schema `subspacelens.editing/1`. `trace_map[role][i]`: mean indirect effect over facts of the
    residual stream after the i-th of `trace_layers` at columns of that role."""

    format: Literal["subspacelens.editing/1"] = "subspacelens.editing/1"
    model: ModelRecord
    known: int
    pairs: list[PairRecord]
    clean_logit_diff: list[float]
    before: Scores
    side_before: SideEffects
    layers: list[EditLayer]
    trace_layers: list[int]
    trace_map: dict[str, list[float]]
    trace_clean: list[float]
    trace_corrupted: list[float]
    tokens: int
    corpus: str
    settings: dict[str, Any]
    seconds: float
    command: str
    made: Made | None = None


def load_editing_record(path: Path | str) -> EditingRecord:
    """Raises `ResultError` naming the file and the first field that is wrong."""
    return read_record(EditingRecord, path, "record of edits")
