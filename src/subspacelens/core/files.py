"""Files written whole or not at all, and where the library keeps its own."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import ResultError

LARGEST = 2**28
"""Bytes of the largest record or page that is read back."""


def cache_folder() -> Path:
    """Where converted weights are kept: `$SUBSPACELENS_CACHE`, else the user's cache folder."""
    own = os.environ.get("SUBSPACELENS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subspacelens"


def file_sha256(path: Path) -> str:
    """Hash of the bytes of a regular file. Raises `OSError` where it cannot be read."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(path: Path) -> str:
    """The same of a file; of a folder, of the names and the bytes of all files in it."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(inside for inside in path.rglob("*") if inside.is_file()):
        digest.update(f"{file.relative_to(path)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def regular(path: Path) -> Path:
    """The path, if a regular file is there, behind symbolic links or not. Raises `OSError` for
    anything else: a FIFO would be waited for for ever, a device read for ever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def read_whole(path: Path | str, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file. Raises `ResultError` where it cannot be read, or is larger than
    `largest` bytes."""
    try:
        path = regular(Path(path))
        if path.stat().st_size > largest:
            raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path` whole or not at all (see `replacing`)."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write and read, which is at `path` when the context ends, on the disk before it
    is seen under its name; after an error nothing is.

    A new file has the mode that the umask leaves it, one that is replaced keeps its own. A symbolic
    link is written through. Raises `ResultError` where the file cannot be written, or where a
    folder, a device or a FIFO is in its place.
    """
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = regular(target).stat().st_mode if os.path.lexists(target) else None
        temporary = target.parent / f".{secrets.token_hex(8)}.partial"
        try:
            with temporary.open("x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}") from None


def write_synced(path: Path, data: bytes) -> None:
    """A new file that is on the disk when this returns. Raises `OSError`."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """What was created or renamed in `folder` is on the disk when this returns. Raises `OSError`.

    Some file systems know no such thing for folders; there it does nothing.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
