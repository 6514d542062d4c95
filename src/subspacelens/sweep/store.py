"""Where records are kept: one folder a cell, named by its content, written whole or not at all.

    DIR/records/ab/<key>/record.json         what was asked, what came out, hashes of the files
                        /audit.json          as `audit` writes them
                        /subspace.safetensors
    DIR/failed/<key>.json                    a cell that failed for good, with its error
    DIR/damaged/                             what did not match its checksum, set aside
    DIR/building/                            folders being written, renamed into place when whole
    DIR/index.parquet                        a table of all records, made from them

A folder is built beside the others, every file of it is on the disk before it is renamed, and the
first to rename wins: so any number of sweeps may write to one store, and be killed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from ..core.errors import ResultError
from ..core.files import file_sha256, sync_folder, write_atomically, write_synced
from .cell import Outcome, Scalar
from .plan import Cell, canonical

SCHEMA = "subspacelens.cell/1"
RECORD = "record.json"


class Store:
    """The records of one folder. Raises `ResultError`, here and in every method, where the folder
    cannot be read or written."""

    def __init__(self, directory: Path | str, *, create: bool = True) -> None:
        self.directory = Path(directory)
        self.records = self.directory / "records"
        self.failures = self.directory / "failed"
        self.damaged = self.directory / "damaged"
        self.building = self.directory / "building"
        if not create:
            if not self.records.is_dir():
                raise ResultError(f"{self.directory} holds no sweep: no folder 'records' in it")
            return
        try:
            for folder in (self.records, self.failures, self.building):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.building / f".write-test-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _cannot("write", self.directory, error) from None
        self._sweep_out()

    def path(self, key: str) -> Path:
        """The folder of a record, whether or not it is there."""
        return self.records / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether there is a whole record; a damaged one is set aside."""
        if not self.path(key).exists():
            return False
        if self.load(key) is not None:
            return True
        self._set_aside(self.path(key))
        return False

    def load(self, key: str) -> dict[str, Any] | None:
        """A record, None if it is not there or does not match its checksums."""
        record = _checked(self.path(key) / RECORD)
        if record is None or record.get("key") != key:
            return None
        for name, digest in record["files"].items():
            try:
                if file_sha256(self.path(key) / name) != digest:
                    return None
            except OSError:
                return None
        return record

    def failure(self, key: str) -> dict[str, Any] | None:
        """The record of a failed cell, None if there is none that can be read."""
        return _checked(self.failures / f"{key}.json")

    def done_keys(self) -> Iterator[str]:
        """Keys of all record folders, in order."""
        try:
            for shelf in sorted(self.records.iterdir()):
                for folder in sorted(shelf.iterdir()):
                    if (folder / RECORD).exists():
                        yield folder.name
        except OSError as error:
            raise _cannot("read", self.records, error) from None

    def failed_keys(self) -> Iterator[str]:
        """Keys of all failed cells, in order."""
        yield from sorted(path.stem for path in self.failures.glob("*.json"))

    def write(self, cell: Cell, outcome: Outcome) -> None:
        """Keeps an outcome; if another sweep has kept it meanwhile, that one stays."""
        record = _described(cell, "done") | {
            "summary": dict(outcome.summary),
            "content_sha256": outcome.content_sha256,
            "files": {n: hashlib.sha256(data).hexdigest() for n, data in outcome.files.items()},
            "run": {
                "seconds": round(outcome.seconds, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "host": socket.gethostname(),
                "versions": dict(outcome.versions),
            },
        }
        self._place(cell.key, dict(outcome.files) | {RECORD: _sealed(record)})
        self.forgive(cell.key)

    def fail(self, cell: Cell, error: str, tries: int) -> None:
        """Keeps the error of a cell that failed `tries` times."""
        record = _described(cell, "failed") | {"error": error, "tries": tries}
        write_atomically(self.failures / f"{cell.key}.json", _sealed(record))

    def forgive(self, key: str) -> None:
        """Forgets that a cell failed."""
        try:
            (self.failures / f"{key}.json").unlink(missing_ok=True)
        except OSError as error:
            raise _cannot("write", self.failures, error) from None

    def _place(self, key: str, files: Mapping[str, bytes]) -> None:
        target = self.path(key)
        mark = f"{os.getpid()}.{uuid.uuid4().hex[:8]}.{socket.gethostname()}"
        building = self.building / f"{key[:16]}.{mark}"
        try:
            building.mkdir()
            for name, data in files.items():
                write_synced(building / name, data)
            sync_folder(building)
            if not target.parent.exists():
                target.parent.mkdir(exist_ok=True)
                sync_folder(self.records)
            self.has(key)
            try:
                building.rename(target)
            except OSError:
                if not target.exists():
                    raise
            sync_folder(target.parent)
        except OSError as error:
            raise _cannot("write", target, error) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _set_aside(self, path: Path) -> None:
        try:
            self.damaged.mkdir(exist_ok=True)
            path.rename(self.damaged / f"{path.name}.{uuid.uuid4().hex[:8]}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _cannot("write", self.damaged, error) from None

    def _sweep_out(self) -> None:
        """Removes what killed sweeps of this machine left half-built."""
        for folder in self.building.iterdir():
            _, pid, _, host = [*folder.name.split(".", 3), "", "", ""][:4]
            if host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _described(cell: Cell, status: str) -> dict[str, Any]:
    site = cell.site
    return {
        "schema": SCHEMA,
        "key": cell.key,
        "status": status,
        "inputs": dict(cell.inputs),
        "cell": {
            "kind": cell.kind,
            "model": cell.model,
            "dtype": cell.dtype,
            "task": Path(cell.task.name).stem,
            "site": str(site),
            "layer": site.layer,
            "stream": site.stream,
            "label": site.label,
            "head": site.head,
            "fit": str(cell.fit),
            "dim": cell.dim,
            "seed": cell.seed,
            "pair": cell.pair,
        },
    }


def _sealed(record: dict[str, Any]) -> bytes:
    checksum = hashlib.sha256(canonical(record).encode()).hexdigest()
    return json.dumps(record | {"checksum": checksum}, indent=1).encode()


class _Kept(BaseModel):
    """What is read of a record; of the rest only the checksum is looked at."""

    model_config = ConfigDict(strict=True, extra="allow")

    schema_: Literal["subspacelens.cell/1"] = Field(alias="schema")
    key: str
    status: Literal["done", "failed"]
    cell: dict[str, Scalar]
    summary: dict[str, Scalar] = {}
    files: dict[str, str] = {}
    run: dict[str, Any] = {}
    error: str | None = None
    content_sha256: str | None = None


def _checked(path: Path) -> dict[str, Any] | None:
    """A record, None if it cannot be read, is none, or does not match its checksum."""
    try:
        if not path.is_file():
            return None
        data = path.read_bytes()
        _Kept.model_validate_json(data)
        record = json.loads(data)
        checksum = record.pop("checksum", None)
        whole = hashlib.sha256(canonical(record).encode()).hexdigest() == checksum
    except (OSError, ValueError, RecursionError):
        return None
    return record if whole else None


def _cannot(what: str, path: Path, error: OSError) -> ResultError:
    return ResultError(f"cannot {what} {path}: {error.strerror or error}; what is there is kept")
