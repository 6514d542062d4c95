"""What stands in `--out` already: results of the same are gone on with, others are not replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import LensError, ResultError
from ..core.files import read_whole

Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what --out holds, though it is of something else."),
]
_NOTHING = object()


def refuse_other_audits(
    out: Path, sites, lens, task, settings: Mapping[str, object], *, judged: bool = True
) -> None:
    """Raises `ResultError` where OUT/<site> holds a subspace, or its audit, of another model, other
    pairs or another way of finding it than `settings` say."""
    from ..audit.run import AUDIT_FILE, SUBSPACE_FILE

    weights = lens.weights_sha256
    for site in sites:
        path = out / str(site) / SUBSPACE_FILE
        if path.exists():
            held = _of_subspace(path)
            refuse_other(out, path, held, _wanted(held, weights, task, settings))
        path = out / str(site) / AUDIT_FILE
        if judged and path.exists():
            expected = {
                "the model": ("model.weights_sha256", weights),
                "the hash of the pairs it was judged on": ("task.test_sha256", task.test.sha256),
            }
            refuse_other(out, path, read_json(path), expected)


def refuse_other_map(out: Path, lens, pairs, *files: str) -> None:
    """Raises `ResultError` where one of OUT/`files` is a map of another model or of other pairs."""
    expected = {
        "the model": ("model.weights_sha256", lens.weights_sha256),
        "the hash of its pairs": ("task.sha256", pairs.sha256),
    }
    for path in (out / file for file in files):
        if path.exists():
            refuse_other(out, path, read_json(path), expected)


def refuse_other_survey(out: Path, lens, task) -> None:
    """Raises `ResultError` where OUT is a survey of another model or task, or of no survey."""
    refuse_other_page(out, "report.html", "survey.json")
    path = out / "survey.json"
    if path.exists():
        expected = {
            "the model": ("illusions.model.weights_sha256", lens.weights_sha256),
            "the task": ("illusions.task", task.name),
        }
        refuse_other(out, path, read_json(path), expected)


def refuse_other_page(out: Path, page: str, *beside: str) -> None:
    """Raises `ResultError` where OUT/`page` is there, but none of the files `beside` of which this
    command makes it."""
    if (out / page).exists() and not any(True for name in beside for _ in out.glob(name)):
        raise ResultError(f"--out {out}: its {page} was made by another command{_WHAT_TO_DO}")


def refuse_other(
    out: Path, path: Path, held: Any, expected: Mapping[str, tuple[str, object]]
) -> None:
    """Raises `ResultError`, in words, for the first of `expected`, a place in the JSON of `held`
    and what must be there, that is not."""
    for words, (place, value) in expected.items():
        found = held
        for key in place.split("."):
            found = found.get(key, _NOTHING) if isinstance(found, Mapping) else _NOTHING
        if found != value:
            shown = "is not known" if found is _NOTHING else f"is {_short(found)}"
            raise ResultError(
                f"--out {out}: {path.relative_to(out)} is of something else: {words} {shown}, now "
                f"{_short(value)}{_WHAT_TO_DO}"
            )


_WHAT_TO_DO = ": give another folder, or replace it with --overwrite"


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it holds none."""
    try:
        return json.loads(read_whole(path))
    except (ResultError, ValueError):
        return None


def _of_subspace(path: Path) -> dict[str, Any] | None:
    from ..fit.subspace import Subspace

    try:
        held = Subspace.load(path)
    except LensError:
        return None
    return {
        "model": held.weights_sha256, "pairs": held.data_sha256, "dim": held.dim, "fit": held.fit,
    }  # fmt: skip


def _wanted(
    held: Mapping[str, Any] | None, weights: str, task, settings: Mapping[str, object]
) -> dict[str, tuple[str, object]]:
    """What a subspace that these `settings` give must say of itself: `dim`, where it is not chosen,
    its method, and of the others those that `held` tells; `pairs`, where it is not the training
    pairs."""
    told = {"method", *(held or {}).get("fit", ())}
    pairs = settings.get("pairs", task.train.sha256)
    wanted = {
        "the model": ("model", weights),
        "the hash of its pairs": ("pairs", pairs),
    }
    if "dim" in settings:
        wanted["its number of dimensions"] = "dim", settings["dim"]
    return wanted | {
        f"the setting {key}": (f"fit.{key}", value)
        for key, value in settings.items()
        if key in told
    }


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text[:60]
