"""Files written whole or not at all, and where the library keeps its own."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from .errors import ResultError


def cache_folder() -> Path:
    """Where converted weights are kept: `$SUBSPACELENS_CACHE`, else the user's cache folder."""
    own = os.environ.get("SUBSPACELENS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subspacelens"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path` whole or not at all. Raises `ResultError` where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}") from None
