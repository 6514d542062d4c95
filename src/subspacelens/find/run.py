"""The search: from pairs to a subspace that one can rely on, or to why there is none."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ..audit import Audit
from ..audit.run import SUBSPACE_FILE
from ..core.errors import LensError, TaskError
from ..core.files import write_atomically
from ..core.format import plain
from ..core.identity import NUMBERS
from ..core.machine import peak_rss_bytes, versions
from ..core.records import ModelRecord, Record, parse_record, read_record
from ..core.site import Site
from ..engine.capture import check_pairs
from ..fit import named
from ..fit.subspace import Subspace
from ..measure.maps import InstantMap, PatchingMap, instant_map, patching_map, refined
from ..measure.maps.making import sites_of
from ..measure.maps.record import InstantRecord, MapRecord
from ..measure.maps.scoring import available, differing
from ..model.lens import LensModel, unchanged
from ..sweep.grid import FitSpec
from ..sweep.local import LocalPool, default_workers
from ..sweep.plan import canonical, code_sha256
from ..sweep.pool import Pool, Report, attempt
from ..sweep.run import drive, look
from ..sweep.schedule import Job
from ..sweep.store import Store
from ..tasks.pairset import PairSet, Task
from . import answer
from .budget import PLAIN, Budget, budget_of, recommended
from .cell import Done, SiteCell, Worker, own_sha256, read_done, site_cell
from .division import Division, divide
from .knowing import Knowing, knowing
from .places import (
    ATTENTION,
    HEADS,
    LISTED,
    Chosen,
    candidates,
    heard,
    predictions,
    streams_of,
    trap,
    traps,
    whole,
)
from .record import (
    FIND_FILE,
    FOOLED,
    FOUND,
    KEPT,
    FindRecord,
    FindTask,
    Place,
    ReaderOf,
    Share,
    Stage,
    Writer,
    save_find,
)
from .sources import sources

LARGEST = 8
M = TypeVar("M", InstantMap, PatchingMap)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to: its record, and by site every subspace and its audit.

    >>> found = sl.find(lens, task)
    >>> print(found)  # the answer in words
    >>> found.subspace, found.record.found[0].label
    """

    record: FindRecord = field(repr=False)
    subspaces: Mapping[str, Subspace] = field(repr=False)
    audits: Mapping[str, Audit] = field(repr=False)

    @property
    def subspace(self) -> Subspace | None:
        """The best one that an audit calls faithful or partial; None where there is none."""
        best = next(iter(self.record.found), None)
        return None if best is None else self.subspaces[best.site]

    def __str__(self) -> str:
        return self.record.answer

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(place.site)}</th><td>{place.label}</td><td>{place.dim}</td>"
            f"<td>{plain(place.effect.fldd.value)}</td><td>{plain(place.whole.fldd.value)}</td>"
            "</tr>"
            for place in self.record.places
        )
        head = "<tr><th>site</th><th></th><th>k</th><th>FLDD</th><th>whole</th></tr>"
        return f"<p>{escape(self.record.answer)}</p><table>{head}{rows}</table>"


def find(
    lens: LensModel,
    task: Task,
    *,
    budget: str = "standard",
    streams: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    dim: int | str = "auto",
    fit: str | FitSpec | None = None,
    directory: Path | str | None = None,
    workers: int | None = None,
    shifted: bool = False,
    memory: int | None = None,
    seed: int = 0,
    command: str = "",
) -> Found:
    """Where does the feature live by which base and source differ, and which subspace is it?

    `task.train` is divided into pairs to fit on and pairs to choose on, without a prompt in common.
    On the latter it is seen whether the model does the task, what every whole component does and
    what DAS is predicted to do (`patching_map`, `instant_map`); where much is done, a subspace is
    fitted, with the fewest dimensions that do nearly as much as more, and where DAS would do much
    although the whole component does little, DAS is let do it. All of them are audited on
    `task.test`, which nothing else has seen, and chance is corrected for how many there are.

    `budget`: `fast` or `standard` (`find.budget`). `streams` and `labels` to search, by default
    the residual stream, MLPs, heads and attentions, where base and source differ. `dim` is a number
    of dimensions instead of the choice, `fit` another fit than the recommended one. What is done is
    kept in `directory` under its identity, with the results, and not done again by the next call.
    `workers`: processes that share the sites, each of which loads the model by its name; by default
    this process does them. `shifted`, `memory`: as in `capture`.

    How to read what comes back: `docs/find.md`.

    Raises `TaskError` for a task that cannot be divided or labels that it lacks, `SiteError` for
    streams, `SubspaceError` for a fit or a dimension that there is not, `LensError` for another
    budget, `ResultError` where `directory` cannot be written.

    >>> found = sl.find(lens, task, budget="fast", directory="runs/find")
    >>> print(found)
    >>> sl.load_subspace("runs/find", lens).patch(task)
    """
    chosen_budget, dims = budget_of(budget), _dims(dim, budget)
    division = divide(task, chosen_budget)
    spec = recommended(division.fit) if fit is None else _spec(fit)
    with ExitStack() as stack:
        stack.enter_context(unchanged(lens))
        out = None if directory is None else Path(directory)
        place = Path(stack.enter_context(TemporaryDirectory())) if out is None else out / KEPT
        search = _Search(
            lens=lens, division=division, budget=chosen_budget, store=Store(place), fit=spec,
            dims=dims, shifted=shifted, memory=memory, seed=seed, command=command,
        )  # fmt: skip
        found = search.run(streams, labels, workers)
    if out is not None:
        _save(found, out)
    return found


def _dims(dim: int | str, budget: str) -> tuple[int, ...]:
    if dim == "auto":
        return budget_of(budget).dims
    if not isinstance(dim, int) or dim < 1:
        raise LensError(f"dim={dim}: a number of dimensions, or auto")
    return (dim,)


def _spec(fit: str | FitSpec) -> FitSpec:
    if isinstance(fit, FitSpec):
        return fit
    named(fit)
    return FitSpec(fit)


@dataclass(kw_only=True)
class _Search:
    """One search under way."""

    lens: LensModel
    division: Division
    budget: Budget
    store: Store
    fit: FitSpec
    dims: tuple[int, ...]
    shifted: bool
    memory: int | None
    seed: int
    command: str
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started, cpu = time.monotonic(), time.process_time()
        yield
        spent = time.monotonic() - started, time.process_time() - cpu
        self.stages.append(Stage(name=name, seconds=spent[0], cpu_seconds=spent[1]))

    def run(
        self, streams: Sequence[str] | None, labels: Sequence[str] | None, workers: int | None
    ) -> Found:
        started, cpu = time.monotonic(), time.process_time()
        choice = self.division.choice
        where, at = self.searched(streams, labels)
        with self.stage("answers"):
            knows = knowing(self.lens, choice, memory=self.memory)
        if knows.lacks:
            return self.summed(knows, None, None, [], [], started, cpu)
        patched, instant = self.maps(choice, where, at)
        sites = self.chosen(patched, instant)
        done = self.audited(sites, workers)
        return self.summed(knows, patched, instant, sites, done, started, cpu)

    def searched(
        self, streams: Sequence[str] | None, labels: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The streams and labels to search. Raises `SiteError` or `TaskError` for those that the
        model or the pairs lack."""
        choice = self.division.choice
        where = tuple(streams or streams_of(available(self.lens)))
        at = tuple(labels or differing(choice, shifted=self.shifted))
        if not at:
            raise TaskError(
                f"task {choice.name}: at no label do base and source differ in one column of both: "
                "see `subspacelens check`, name a --label, or allow --shifted"
            )
        sites_of(self.lens, choice, where, at)
        for label in at:
            check_pairs(choice, Site(0, where[0], label), shifted=self.shifted)
        return where, at

    def maps(
        self, choice: PairSet, streams: tuple[str, ...], labels: tuple[str, ...]
    ) -> tuple[PatchingMap, InstantMap]:
        rest: dict[str, Any] = {"shifted": self.shifted, "memory": self.memory}
        asked = choice.sha256, streams, labels
        with self.stage("instant map"):
            instant = self.kept_map(
                InstantMap, asked,
                lambda: instant_map(self.lens, choice, streams, labels, limit=None, **rest),
            )  # fmt: skip
        with self.stage("whole components"):
            patched = self.patched(choice, streams, labels)
        taken = [each.site for each in candidates(patched)]
        names = [str(s.site) for s, _ in traps(patched, instant, taken)[: self.budget.refined]]
        with self.stage("refined predictions"):
            instant = self.kept_map(
                InstantMap, (*asked, names),
                lambda: refined(self.lens, choice, instant, names, **rest),
            )  # fmt: skip
        return patched, instant

    def patched(
        self, choice: PairSet, streams: tuple[str, ...], labels: tuple[str, ...]
    ) -> PatchingMap:
        """Whole components, and of the layers whose attention does something the single heads."""

        def made(streams: tuple[str, ...], layers: list[int] | None) -> PatchingMap:
            return self.kept_map(
                PatchingMap, (choice.sha256, streams, labels, layers),
                lambda: patching_map(
                    self.lens, choice, streams, labels, layers=layers, limit=None,
                    shifted=self.shifted, memory=self.memory,
                ),
            )  # fmt: skip

        rest = tuple(stream for stream in streams if stream != HEADS)
        if HEADS not in streams or ATTENTION not in rest:
            return made(streams, None)
        found = made(rest, None)
        layers = heard(found)
        return found.beside(made((HEADS,), layers)) if layers else found

    def kept_map(self, kind: type[M], asked: Sequence[Any], make: Callable[[], M]) -> M:
        """A map that was kept, or else one that is made and kept now."""
        path = self.path(kind.__name__, asked)
        try:
            return kind.load(path)
        except LensError:
            found = make()
            found.save(path)
            return found

    def path(self, name: str, asked: Sequence[Any]) -> Path:
        identity = self.lens.identity
        origin = {
            "model": [getattr(identity, part) for part in NUMBERS],
            "code": [code_sha256(), own_sha256()],
            "shifted": self.shifted,
            "memory": self.memory,
            "asked": asked,
        }
        key = hashlib.sha256(canonical(origin).encode()).hexdigest()
        return self.store.directory / f"{name}.{key[:32]}.json"

    def chosen(self, patched: PatchingMap, instant: InstantMap) -> list[Chosen]:
        """The sites to audit, the most promising first."""
        every = candidates(patched)
        first = every[: self.budget.candidates]
        if len(every) > len(first):
            names = ", ".join(str(each.site) for each in every[len(first) :])
            self.notes.append(
                f"{len(every) - len(first)} further sites of which the whole component does much "
                f"were not looked into under the budget {self.budget.name}: {names}"
            )
        fooling = traps(patched, instant, [each.site for each in every])
        return first + [trap(*each) for each in fooling[: self.budget.traps]]

    def audited(self, sites: Sequence[Chosen], workers: int | None) -> list[Done]:
        """Fits and audits at all sites, those that were kept taken from there."""
        cells: dict[str, tuple[SiteCell, Chosen]] = {}
        for number, chosen in enumerate(sites):
            trapped = chosen.role == "trap"
            cell = site_cell(
                self.lens, chosen, self.division, self.budget, PLAIN if trapped else self.fit,
                (1,) if trapped else self.dims, controls=number < self.budget.controlled
                and not trapped, shifted=self.shifted, memory=self.memory, seed=self.seed,
                command=self.command,
            )  # fmt: skip
            cells[cell.key] = cell, chosen
        with self.stage("fits and audits"):
            tally, missing = look(self.store, [cell for cell, _ in cells.values()], retry=True)
            if missing:
                with ExitStack() as stack:
                    pool = self.pool(workers, len(missing))
                    stack.callback(pool.close)
                    drive(missing, self.store, pool, 1, tally, "find")
        done = []
        for key, (cell, chosen) in cells.items():
            if self.store.has(key):
                done.append(read_done(self.store.path(key), chosen, self.lens))
            else:
                failure = self.store.failure(key) or {}
                _, _, why = str(failure.get("error", "")).partition(": ")
                self.failed[str(cell.site)] = why or "no result"
        return done

    def pool(self, workers: int | None, jobs: int) -> Pool:
        if workers is None or workers == 1:
            return _Here(self.lens)
        if not self.lens.identity.lasting:
            raise LensError(
                f"model {self.lens.id} runs under hooks, so that no other process can have it: "
                "leave workers out"
            )
        threads = max(1, default_workers(1) // workers)
        return LocalPool(min(workers, jobs), threads, works=Worker)

    def summed(
        self, knows: Knowing, patched: PatchingMap | None, instant: InstantMap | None,
        sites: Sequence[Chosen], done: Sequence[Done], started: float, cpu: float,
    ) -> Found:  # fmt: skip
        places: list[Place] = []
        predicted, largest = [], []
        if patched is not None and instant is not None:
            seen = predictions(patched, instant)
            ps, qs = answer.chances(done)
            places = answer.ranked(
                [
                    answer.place_of(each, p, q, seen, str(each.chosen.site))
                    for each, p, q in zip(done, ps, qs, strict=True)
                ]
            )
            looked = {each.site for each in sites}
            further = traps(patched, instant, [each.site for each in candidates(patched)])
            predicted = [
                seen[score.site] for score, _ in further if score.site not in looked
            ][:LISTED]  # fmt: skip
            does = sorted(whole(patched).items(), key=lambda each: -each[1])[:LARGEST]
            largest = [Share(site=str(site), whole=value) for site, value in does]
        found = [place for place in places if place.label in FOUND]
        subspaces = {str(each.chosen.site): each.audit.subspace for each in done}
        with self.stage("writers and readers"):
            found = [self.with_sources(place, subspaces[place.site]) for place in found]
        fooled = [place for place in places if place.label in FOOLED]
        undetermined = [place for place in places if place.label == "undetermined"]
        outcome = "lacking" if patched is None else answer.outcome_of(found, places)
        task, lens = self.division.task, self.lens
        record = FindRecord(
            model=ModelRecord(
                id=lens.id, weights_sha256=lens.weights_sha256,
                dtype=str(lens.dtype).removeprefix("torch."),
            ),
            task=FindTask(
                name=task.name, fit_pairs=len(self.division.fit),
                choice_pairs=len(self.division.choice), test_pairs=len(task.test),
                fit_sha256=self.division.fit.sha256, choice_sha256=self.division.choice.sha256,
                test_sha256=task.test.sha256, labels=list(task.test.labels),
            ),
            budget=self.budget.name, fit={"method": self.fit.method, **self.fit.options},
            outcome=outcome,
            answer=answer.in_words(
                outcome, found, fooled, undetermined, largest, knows.in_words
            ),
            clean=knows.clean, preferred=knows.preferred, found=found, fooled=fooled,
            undetermined=undetermined, predicted=predicted, largest=largest, failed=self.failed,
            patched=None if patched is None else _as(MapRecord, patched),
            instant=None if instant is None else _as(InstantRecord, instant),
            notes=self.notes, stages=self.stages, seconds=time.monotonic() - started,
            cpu_seconds=time.process_time() - cpu, peak_rss_bytes=peak_rss_bytes(),
            versions=versions(), command=self.command,
        )  # fmt: skip
        audits = {str(each.chosen.site): each.audit for each in done}
        return Found(record, subspaces, audits)

    def with_sources(self, place: Place, subspace: Subspace) -> Place:
        """The place with its writers and readers, on the first pairs to choose on."""
        pairs = self.division.choice[: self.budget.written]
        path = self.path("Sources", (pairs.sha256, place.site, _sha256(subspace)))
        try:
            kept = read_record(_Sources, path, "record of writers and readers")
        except LensError:
            try:
                writers, readers = sources(
                    self.lens, pairs, subspace, shifted=self.shifted, memory=self.memory
                )
            except LensError as error:
                self.notes.append(f"writers and readers of {place.site}: {error}")
                return place
            kept = _Sources(writers=writers, readers=readers)
            write_atomically(path, kept.model_dump_json().encode())
        return place.model_copy(update={"writers": kept.writers, "readers": kept.readers})


class _Sources(Record):
    writers: list[Writer]
    readers: list[ReaderOf]


class _Here:
    """One worker, this process, with the model that it has."""

    workers = (0,)

    def __init__(self, lens: LensModel) -> None:
        self._worker = Worker(lens=lens)
        self._job: Job | None = None

    def send(self, worker: int, job: Job) -> None:
        self._job = job

    def wait(self, seconds: float) -> list[Report]:
        job, self._job = self._job, None
        return [] if job is None else [attempt(self._worker, 0, job)]

    def close(self) -> None:
        pass


def _sha256(subspace: Subspace) -> str:
    return hashlib.sha256(subspace.basis.numpy().tobytes()).hexdigest()


def _as(kind: type, found: InstantMap | PatchingMap):
    return parse_record(kind, found.to_json(), "the map", "map")


def _save(found: Found, out: Path) -> None:
    """The audits as `audit` saves them, the best subspace, and the record last."""
    for audit in found.audits.values():
        audit.save(out)
    best = out / SUBSPACE_FILE
    if found.subspace is None:
        best.unlink(missing_ok=True)
    else:
        found.subspace.save(best)
    save_find(found.record, out / FIND_FILE)
