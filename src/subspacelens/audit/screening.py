"""Many directions of one site, judged by the rule of the audit and corrected for their number."""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import polars as pl
from pydantic import Field
from scipy.stats import false_discovery_control
from torch import Tensor

from ..certify import require
from ..core.errors import SubspaceError
from ..core.files import write_atomically
from ..core.geometry import SUPPORT_AT
from ..core.machine import versions
from ..core.progress import track
from ..core.records import EffectRecord, ModelRecord, Number, Record, read_record
from ..core.site import Site
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace
from ..measure.effects import random_effects
from ..model.lens import LensModel, unchanged
from .evidence import Case, Setting
from .judging import FAST_DRAWS, evidence_for, setting_at
from .record import TaskRecord, VerdictCode, VerdictName
from .run import task_record
from .verdict import CHANCE, Evidence, can_be_judged, decide

SCHEMA: Final = "subspacelens.screen/1"
POOL = 400
"""Random directions of all rows together, at least."""
PATCHES = ("subspace", "row", "read_row", "read_null")


class ScreenRow(Record):
    """One direction. `size`: its mean effect, in root mean squares of what random directions do
    that write as much. `p`: the share of all random directions of the screen, each in those of its
    own row, that are as large; `q`: the false discovery rate at which it is called more than chance
    (Benjamini and Hochberg). `label` is the verdict of the audit's rule with `q` in place of
    chance's p-value, for `reason`."""

    row: int
    effect: EffectRecord
    size: Number
    p: float = Field(gt=0, le=1)
    q: float = Field(gt=0, le=1)
    label: VerdictName
    code: VerdictCode
    score: float = Field(ge=0, le=1)
    reason: str


class Screen(Record):
    """Schema `subspacelens.screen/1`: the directions of one site that were screened, in their
    order, and by number those that are none, with why. `whole`: the effect of the whole component;
    `random`: how many random directions p-values are counted among; `origin`: where the directions
    are from.

    >>> found = sl.screen(lens, captures, "L18.mlp_act@S2", decoder[:64])
    >>> found.beyond_chance, found.frame().sort("q")
    """

    schema_: Literal["subspacelens.screen/1"] = Field(SCHEMA, alias="schema")
    model: ModelRecord
    task: TaskRecord
    site: str
    origin: dict[str, str | int | float | bool | None]
    whole: EffectRecord
    random: int
    rows: list[ScreenRow]
    failed: dict[int, str]
    seconds: float = Field(ge=0)
    versions: dict[str, str]
    command: str

    @property
    def beyond_chance(self) -> list[int]:
        """Rows that do more than chance at a false discovery rate of 5 %."""
        return [each.row for each in self.rows if each.q <= CHANCE]

    def frame(self) -> pl.DataFrame:
        """One row a direction, polars (`.to_pandas()` where pandas and pyarrow are installed)."""
        return pl.DataFrame(
            [
                {
                    "row": each.row,
                    "fldd": each.effect.fldd.value,
                    "fldd_low": each.effect.fldd.low,
                    "fldd_high": each.effect.fldd.high,
                    "nats": each.effect.nats.value,
                    "iia": each.effect.iia.value,
                    "size": each.size,
                    "p": each.p,
                    "q": each.q,
                    "verdict": each.label,
                    "code": each.code,
                    "score": each.score,
                    "reason": each.reason,
                }
                for each in self.rows
            ],
            infer_schema_length=None,
        )

    def save(self, path: Path | str) -> None:
        write_atomically(Path(path), self.model_dump_json(indent=1, by_alias=True).encode())

    @classmethod
    def load(cls, path: Path | str) -> Screen:
        """Raises `ResultError` as `read_record` does."""
        return read_record(cls, path, f"{SCHEMA} record")


@dataclass(frozen=True)
class _Judged:
    """A direction before it is known how many there are: numbers alone, nothing of the replay."""

    effect: EffectRecord
    evidence: Evidence
    own: float
    null: np.ndarray


def screen(
    lens: LensModel,
    captures: TaskCapture,
    site: Site | str,
    directions: Tensor | np.ndarray,
    *,
    rows: Sequence[int] | None = None,
    origin: Mapping[str, str | int | float | bool | None] | None = None,
    seed: int = 0,
    command: str = "",
) -> Screen:
    """Which of many directions (m, dim), one a row, do more than chance at a site, and what are
    they?

    Each is patched on the test pairs and judged by the audit's rule under the budget `fast`, on one
    capture. Its p-value is the share of random directions that do as much: those of all rows are
    one pool, each measured in what random directions do that write as much as its own row, so that
    many rows are told apart with few draws each. q-values are Benjamini and Hochberg's. `rows` are
    the numbers of the rows, by default from 0; `origin` is kept, such as a file's name.

    Raises what `audit` does, and `SubspaceError` where no row is a direction.

    >>> captures = sl.capture_task(lens, task, ["L18.mlp_act@S2"])
    >>> sl.screen(lens, captures, "L18.mlp_act@S2", decoder[:64]).frame()
    """
    started, site = time.monotonic(), Site.of(site)
    numbers = range(len(directions)) if rows is None else rows
    with unchanged(lens):
        require(lens, site)
        subspaces: dict[int, Subspace] = {}
        failed: dict[int, str] = {}
        for number, direction in zip(numbers, directions, strict=True):
            try:
                subspaces[number] = Subspace.of(lens, site, direction)
            except SubspaceError as error:
                failed[number] = str(error)
        if not subspaces:
            raise SubspaceError(next(iter(failed.values()), f"no direction to screen at {site}"))
        setting, _, leaking = setting_at(captures, site, lens)
        draws = max(FAST_DRAWS, math.ceil(POOL / len(subspaces)))
        judged = {
            number: _judged(setting, subspace, draws, seed + number, leaking)
            for number, subspace in track(list(subspaces.items()), f"screen of {site}")
        }
        found = list(judged.values())
        sizes, ps = pooled(np.array([x.own for x in found]), np.stack([x.null for x in found]))
        qs = false_discovery_control(ps)
        weights = lens.weights_sha256
    return Screen(
        schema=SCHEMA,
        model=ModelRecord(id=lens.id, weights_sha256=weights, dtype=str(lens.dtype).split(".")[-1]),
        task=task_record(captures),
        site=str(site),
        origin=dict(origin or {}),
        whole=setting.full.record,
        random=draws * len(found),
        rows=[
            _row(number, each, float(size), float(p), float(q))
            for (number, each), size, p, q in zip(judged.items(), sizes, ps, qs, strict=True)
        ],
        failed=failed,
        seconds=time.monotonic() - started,
        versions=versions(),
        command=command,
    )


def pooled(own: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and p-values (m,) of effects `own` (m,), given those of random directions `null`
    (m, draws) that write as much: each in root mean squares of its row's random ones (of the
    others, for one of these), and the share of all that are as large, with the true one among them.
    """
    tiny = np.finfo(float).tiny
    total, draws = np.square(null).sum(axis=1), null.shape[1]
    sizes = np.abs(own) / np.sqrt(np.maximum(total / draws, tiny))
    others = (total[:, None] - np.square(null)) / (draws - 1)
    of_null = np.sort((np.abs(null) / np.sqrt(np.maximum(others, tiny))).ravel())
    above = len(of_null) - np.searchsorted(of_null, sizes, side="left")
    return sizes, (1 + above) / (1 + len(of_null))


def _judged(setting: Setting, subspace: Subspace, draws: int, seed: int, leaking: int) -> _Judged:
    case = Case(
        setting=setting, subspace=subspace, patches=("subspace",), explained=(SUPPORT_AT,),
        draws=FAST_DRAWS, proxies=False, seed=seed,
    )  # fmt: skip
    null = random_effects(case.replay, None, case.basis, draws, seed).uniform
    own, effect = float(case.drop[: null.shape[1]].mean()), case.effects["subspace"].record
    evidence, _ = evidence_for(case, leaking)
    if can_be_judged(evidence):
        evidence, tests = evidence_for(replace(case, patches=PATCHES), leaking)
        decide(evidence)
        evidence = replace(evidence, tests=dict(tests.known))
    return _Judged(effect, evidence, own, null.mean(axis=1))


def _row(number: int, judged: _Judged, size: float, p: float, q: float) -> ScreenRow:
    evidence, chance = judged.evidence, judged.evidence.tests.get("chance")
    if chance is not None:
        corrected = chance.model_copy(
            update={
                "value": q,
                "reading": f"{size:.1f} times what random directions do that write as much "
                f"(p = {p:.2g}, q = {q:.2g})",
            }
        )
        evidence = replace(evidence, tests=ChainMap({"chance": corrected}, dict(evidence.tests)))
    verdict = decide(evidence)
    return ScreenRow(
        row=number, effect=judged.effect, size=size, p=p, q=q, label=verdict.label,
        code=verdict.code, score=verdict.score, reason=verdict.reasons[0],
    )  # fmt: skip
