"""A grid of cells, read from TOML.

    models = ["smollm2"]
    tasks  = ["ioi", "pairs.jsonl"]
    sites  = ["L*.mlp_act@END", "L17.resid_post@S2"]
    fits   = ["das", { method = "das", steps = 60 }, "mean-difference"]
    dims   = [1]
    seeds  = [0, 1, 2]

Everything else has a default (see `Grid`).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..core.errors import LensError, SubspaceError, TaskError
from ..core.sizes import parse_size
from ..fit.registry import Seed, named
from .pattern import check_pattern

FACTS = "facts"
CONFIGS = ("config.json", "cfg.json")
"""Files of which a folder has one: a model's, or of a tool that `interop` reads."""
Kind = Literal["audit", "fit", "pair"]
PER_PAIR = "per-pair"
GIVEN = "given"
MOST = 2**31
MOST_THREADS = 1024
MOST_SECONDS = 366 * 24 * 3600


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FitSpec(_Strict, extra="allow"):
    """One way of fitting and those of its options that are not left at their defaults:
    `FitSpec("das", steps=60)`; or what a file holds, ours or another tool's, that belongs at every
    site of the grid: `FitSpec("given", file="sae", row=7)`, with the `key` of a part. Raises
    `ValueError` for a fit or an option that there is not."""

    method: str

    def __init__(self, /, method: str = "", **options: Any) -> None:
        super().__init__(**{"method": method, **options})

    @model_validator(mode="after")
    def _known(self) -> FitSpec:
        if self.method == PER_PAIR:
            if self.options:
                raise ValueError(f"{PER_PAIR} takes no {', '.join(self.options)}")
            return self
        if self.method == GIVEN:
            kinds = {"file": str, "key": str, "row": int}
            fitting = all(type(self.options[n]) is kinds.get(n) for n in self.options)
            if "file" not in self.options or not fitting:
                raise ValueError(f'{GIVEN} takes file = "...", and key = "..." and row = 7')
            return self
        try:
            named(self.method).check_options(self.options)
        except SubspaceError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return dict(self.__pydantic_extra__ or {})

    def __str__(self) -> str:
        more = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method}({more})" if more else self.method


class TaskSpec(_Strict):
    """A task by name (`ioi`, or `facts`: pairs of embedded facts that the model knows) or by file
    of pairs, `test` a file of its own to judge on."""

    name: str
    test: str | None = None


class Grid(_Strict):
    """Every combination of the lists is a cell.

    `kind`: an `audit`; a `fit` alone with its effect; or a `pair`, one direction fitted on a single
    test pair, as for facts (arXiv 2311.17030 §5), each pair a cell of its own. `pairs`: at most
    that many to fit and to judge on. `task_seed` draws the pairs, `seeds` are those of fits and
    controls. `threads` is what one worker computes with, whatever their number, and `memory` the
    budget of its replays: both decide in which order sums are taken, so that equal grids give equal
    bits. A cell that fails is tried `tries` times; one that takes more than `timeout` seconds, the
    loading of its model and its captures among them, has failed, and its worker is killed.

    >>> grid = read_grid("grid.toml")
    >>> grid.sites, grid.seeds
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    fits: Annotated[tuple[FitSpec, ...], Field(min_length=1)] = (FitSpec("das"),)
    dims: Annotated[tuple[Annotated[int, Field(ge=1, le=MOST)], ...], Field(min_length=1)] = (1,)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    kind: Kind = "audit"
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    pairs: Annotated[int, Field(ge=1, le=MOST)] | None = None
    task_seed: Seed = 0
    shifted: bool = False
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] = 1
    memory: str = "1GiB"
    tries: Annotated[int, Field(ge=1, le=MOST)] = 3
    timeout: Annotated[int, Field(ge=1, le=MOST_SECONDS)] = 3600

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_task(cls, value: Any) -> Any:
        return tuple({"name": v} if isinstance(v, str) else v for v in value)

    @field_validator("fits", mode="before")
    @classmethod
    def _named_fit(cls, value: Any) -> Any:
        return tuple({"method": v} if isinstance(v, str) else v for v in value)

    @field_validator("models", "tasks", "sites", "fits", "dims", "seeds", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"give a list: [{value!r}]")
        return tuple(value)

    @field_validator("sites")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                check_pattern(text)
            except LensError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _fits_of_pairs(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "pair" and "fits" not in data:
            return data | {"fits": (PER_PAIR,)}
        return data

    @model_validator(mode="after")
    def _kind_and_fits(self) -> Grid:
        for fit in self.fits:
            if (fit.method == PER_PAIR) != (self.kind == "pair"):
                raise ValueError(f"fit {fit.method} does not go with kind {self.kind}")
        for task in self.tasks:
            if task.name == FACTS and self.kind != "pair":
                raise ValueError(
                    'facts have no direction in common, only one a pair: use kind = "pair"'
                )
            if task.name == FACTS and task.test:
                raise ValueError("the facts are embedded: leave test out")
        if self.kind == "pair" and self.dims != (1,):
            raise ValueError("a pair has one direction: leave dims out")
        return self

    @field_validator("memory")
    @classmethod
    def _size(cls, value: str) -> str:
        try:
            parse_size(value)
        except LensError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def memory_bytes(self) -> int:
        return parse_size(self.memory)


def read_grid(path: Path | str) -> Grid:
    """Reads a grid; files that it names are sought beside it.

    Raises `TaskError`, naming the file and the first field that is wrong.

    >>> grid = sl.read_grid("grid.toml")
    >>> grid.sites, grid.fits, grid.seeds
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise TaskError(f"cannot read the grid {path}: not a file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        grid = Grid.model_validate(raw)
    except OSError as error:
        raise TaskError(f"cannot read the grid {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"]) or "the grid"
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = "there is no such field"
        raise TaskError(f"{path}: {where}: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path} is not TOML: {error}") from None

    def beside(name: str) -> str:
        there = path.parent / name
        known = there.is_file() or any((there / one).is_file() for one in CONFIGS)
        return str(there.resolve()) if known else name

    fits = tuple(
        FitSpec(fit.method, **fit.options | {"file": beside(fit.options["file"])})
        if fit.method == GIVEN
        else fit
        for fit in grid.fits
    )
    tasks = tuple(
        task.model_copy(update={"name": beside(task.name), "test": task.test and beside(task.test)})
        for task in grid.tasks
    )
    models = tuple(map(beside, grid.models))
    return grid.model_copy(update={"tasks": tasks, "models": models, "fits": fits})
