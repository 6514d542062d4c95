"""The record of one search, `find.json`: its schema, and how it is written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ..audit.record import Clean, How, VerdictCode, VerdictName
from ..core.files import write_atomically
from ..core.records import EffectRecord, Estimate, ModelRecord, Number, Record, read_record
from ..measure.maps.record import InstantRecord, MapRecord

SCHEMA = "subspacelens.find/1"
FIND_FILE = "find.json"
KEPT = "kept"
"""The folder beside it of what need not be done again."""

Outcome = Literal["found", "nowhere", "undetermined", "lacking"]
"""*found*: a subspace that its audit calls faithful or partial. *nowhere*: no site does enough by
itself to be looked into. *undetermined*: some do, and none of the subspaces there can be relied on.
*lacking*: the model does not do the task, so nothing was searched."""

Role = Literal["candidate", "trap"]
"""*candidate*: the whole component does much, so that the feature can be there. *trap*: DAS is
predicted to do much and the whole component does little."""

FOUND: tuple[VerdictName, ...] = ("faithful", "partial")
FOOLED: tuple[VerdictName, ...] = ("illusory", "mixed")


class FindTask(Record):
    """Pairs to fit on, to choose sites and dimensions on, and fresh ones to judge on; hashes of
    their contents. No prompt is in two of them."""

    name: str
    fit_pairs: int = Field(ge=1)
    choice_pairs: int = Field(ge=1)
    test_pairs: int = Field(ge=1)
    fit_sha256: str
    choice_sha256: str
    test_sha256: str
    labels: list[str]


class Share(Record):
    """What replacing a whole component does on the choice pairs: `whole` is its FLDD, 1 where it
    takes the whole preference away."""

    site: str
    whole: Number


class Prediction(Share):
    """What the theory says of a site before any fit, on the choice pairs. `das`: the FLDD that DAS
    is predicted to reach; `illusion`: how much of that is illusion, None where it is not known;
    `refined`: whether the gradient was averaged along the path of the patch."""

    das: Number
    illusion: Number | None
    refined: bool


class ControlsCount(Record):
    """The audit was right on `right` of `of` faithful and illusory subspaces planted at the site;
    `void` says why that is no calibration, if it is none."""

    right: int = Field(ge=0)
    of: int = Field(ge=0)
    void: str

    @model_validator(mode="after")
    def _part(self) -> Self:
        if self.right > self.of:
            raise ValueError(f"right on {self.right} of {self.of} controls")
        return self


class Writer(Record):
    """What writes the subspace: a component of the sum that the site's activation is. `effect`: the
    share of the subspace's effect that its own change along the subspace has alone; `linear`: its
    share of the change along the subspace. The `linear` of all writers add up to 1; effects need
    not. `layer` is None for the embedding, `head` where a component has none."""

    name: str
    layer: int | None
    head: int | None
    effect: Number
    linear: Number


class ReaderOf(Record):
    """What reads the subspace: a head's queries, keys or values, or an MLP. `share`: how much of
    the subspace's effect goes through it, by gradient times change; shares need not add up to 1.
    """

    name: str
    layer: int
    share: Number


class Place(Record):
    """One site that was searched and audited.

    `why` it was chosen, in words, with what was seen on the choice pairs (`seen`). `dim` and `fit`
    of the subspace; `tried`: the FLDD on the choice pairs by number of dimensions, where that was
    chosen. On the fresh pairs: `effect` of the subspace and `whole` of the whole component, and
    `share`, the first over the second (null where the whole component does nothing). `label` and
    `code` are the audit's, unless `q`, chance's p-value `p` corrected for the number of sites that
    were audited, is too large. `reasons` say why. `folder` holds `audit.json` and
    `subspace.safetensors`, relative to `find.json`, None where nothing was saved.
    `cpu_seconds` are those of the fit and the audit.
    """

    site: str
    layer: int = Field(ge=0)
    stream: str
    head: int | None
    column: str
    role: Role
    why: str
    seen: Prediction
    dim: int = Field(ge=1)
    fit: How
    tried: dict[int, Number] = Field(default_factory=dict)
    effect: EffectRecord
    whole: EffectRecord
    share: Estimate
    label: VerdictName
    code: VerdictCode
    score: float = Field(ge=0, le=1)
    reasons: list[str]
    p: float | None = Field(ge=0, le=1)
    q: float | None = Field(ge=0, le=1)
    controls: ControlsCount | None
    writers: list[Writer] = Field(default_factory=list)
    readers: list[ReaderOf] = Field(default_factory=list)
    folder: str | None
    cpu_seconds: float = Field(ge=0)


class Stage(Record):
    """How long a part of the search took; of work done before and kept, nothing."""

    name: str
    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(ge=0)


class FindRecord(Record):
    """Schema `subspacelens.find/1`. `answer` says it in words. `clean`: what the model answers
    on the choice pairs; `preferred`: in which share of them the answer is likelier than the target.
    `found`, the best first, holds what the audit calls faithful or partial,
    and nothing else; `fooled` what it calls illusory or mixed; `undetermined` the rest. `predicted`
    are further traps, by prediction alone; `largest` the sites whose whole component does most;
    `failed` the sites at which nothing could be fitted or judged, with why. `patched` is the map of
    whole components, `instant` what the theory says, both on the choice pairs, None where the
    model lacks the feature.

    >>> record = found.record
    >>> record.outcome, [(place.site, place.dim, place.label) for place in record.found]
    """

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: "schema" if name == "schema_" else name,
        populate_by_name=True,
    )

    schema_: Literal["subspacelens.find/1"] = SCHEMA
    model: ModelRecord
    task: FindTask
    budget: Literal["fast", "standard"]
    fit: dict[str, Any]
    outcome: Outcome
    answer: str
    clean: Clean
    preferred: Estimate
    found: list[Place]
    fooled: list[Place]
    undetermined: list[Place]
    predicted: list[Prediction]
    largest: list[Share]
    failed: dict[str, str]
    patched: MapRecord | None
    instant: InstantRecord | None
    notes: list[str]
    stages: list[Stage]
    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)
    versions: dict[str, str]
    command: str

    @model_validator(mode="after")
    def _sorted_by_verdict(self) -> Self:
        for name, wanted in (("found", FOUND), ("fooled", FOOLED)):
            for place in getattr(self, name):
                if place.label not in wanted:
                    raise ValueError(f"{name}: {place.site} is {place.label}")
        for place in self.undetermined:
            if place.label != "undetermined":
                raise ValueError(f"undetermined: {place.site} is {place.label}")
        if (self.outcome == "found") != bool(self.found):
            raise ValueError(f"outcome {self.outcome} with {len(self.found)} found")
        if (self.outcome == "lacking") != (self.patched is None):
            raise ValueError("a map is missing")
        return self

    @property
    def places(self) -> list[Place]:
        """All sites that were audited."""
        return [*self.found, *self.fooled, *self.undetermined]


def save_find(record: FindRecord, path: Path) -> None:
    write_atomically(path, record.model_dump_json(indent=1, by_alias=True).encode())


def load_find(path: Path | str) -> FindRecord:
    """Reads and validates `find.json`; raises `ResultError` as `read_record` does.

    >>> load_find("runs/find/find.json").answer
    """
    return read_record(FindRecord, path, f"{SCHEMA} record")
