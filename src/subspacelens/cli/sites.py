"""Work at several sites, where an error at one of them stops none of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..core.errors import LensError
from ..core.site import Site
from .options import command_line
from .printing import complain

T = TypeVar("T")


def capture_sites(
    lens,
    task,
    sites: Sequence[Site],
    dim: int,
    shifted: bool,
    keep: Path | None = None,
    memory: int | None = None,
):
    """The captures of all sites that have what the work needs, and the error of each other one.

    Raises the first error where there is no such site.
    """
    from ..certify import require
    from ..engine.task_capture import capture_task
    from ..fit.registry import check_dim

    refused: dict[Site, LensError] = {}

    def passing(check: Callable[[Site], object]) -> list[Site]:
        passed = []
        for site in sites:
            if site not in refused:
                try:
                    check(site)
                    passed.append(site)
                except LensError as error:
                    refused[site] = error
        if not passed:
            raise next(iter(refused.values()))
        return passed

    def check(site: Site) -> None:
        check_dim(site, dim, lens.map.dim(site))
        require(lens, site)

    certified = passing(check)
    try:
        return capture_task(
            lens, task, certified, shifted=shifted, keep=keep, memory=memory
        ), refused
    except LensError:
        captured = passing(
            lambda site: capture_task(lens, task, [site], shifted=shifted, keep=keep, memory=memory)
        )
        return capture_task(
            lens, task, captured, shifted=shifted, keep=keep, memory=memory
        ), refused


def at_each_site(
    sites: Sequence[Site], out: Path, work: Callable[[Site], T]
) -> tuple[list[T], bool]:
    """What `work` returns at every site where it succeeds, and whether it did everywhere. Where it
    raises `LensError`, that line is printed and kept as `out/<site>/failure.json`."""
    from ..audit.failure import FAILURE_FILE, Failure

    results = []
    for site in sites:
        try:
            results.append(work(site))
            (out / str(site) / FAILURE_FILE).unlink(missing_ok=True)
        except LensError as error:
            complain(f"{site}: {error}")
            Failure(site=str(site), error=str(error), command=command_line()).save(out)
    return results, len(results) == len(sites)
