"""Files of the Hugging Face hub, by the id of their repository."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..core.errors import ResultError, SubspaceError, first_line

_ID = re.compile(r"[\w.-]+/[\w.-]+")
OURS = "subspace.safetensors"
"""What a subspace of ours is called in a repository."""

_FAILURES: tuple[type[Exception], ...] = (
    *HfHubHTTPError.__bases__, HFValidationError, LocalEntryNotFoundError, OSError,
)  # fmt: skip
"""Of the hub and of its HTTP client, whichever that is."""

_FILES = (".safetensors", ".npy", ".npz", ".pt", ".pth", ".bin", ".gguf", ".json")


def located(spec: str | Path) -> Path:
    """The local path of a file or a folder: `spec` itself where it is there, else what
    `owner/name`, `owner/name/folder/in/it` or `owner/name/file` is on the hub, downloaded into its
    cache; of a repository as a whole what is in no folder. Without a network, what the cache has.
    A repository of ours is the subspace in it.

    Raises `SubspaceError` where there is no such repository, or nothing of that name in it.

    >>> located("jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")
    """
    path = Path(spec)
    parts = str(spec).split("/")
    repository, inside = "/".join(parts[:2]), "/".join(parts[2:])
    is_id = _ID.fullmatch(repository) and not parts[0].startswith(".") and ".." not in parts
    if path.exists() or not is_id or repository.endswith(_FILES):
        return path / OURS if (path / OURS).is_file() else path
    try:
        folder = Path(
            snapshot_download(
                repository,
                allow_patterns=[inside, f"{inside}/*"] if inside else None,
                ignore_patterns=None if inside else ["*/*"],
            )
        )
    except _FAILURES as error:
        raise SubspaceError(
            f"{spec}: no such file or folder, and not from the hub: {first_line(error)}"
        ) from None
    found = folder / inside if inside else folder
    if not found.exists():
        raise SubspaceError(f"{repository} is on the hub and has no '{inside}'")
    return found / OURS if (found / OURS).is_file() else found


def pushed(
    repository: str,
    files: Mapping[str, bytes],
    *,
    message: str,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Puts `files`, bytes by their path in the repository, on the hub in one commit, and gives its
    address. The repository is made where it is missing; what else is in it stays.

    Raises `ResultError` where the hub refuses or cannot be reached.
    """
    hub = HfApi(token=token)
    changes = [CommitOperationAdd(name, data) for name, data in files.items()]
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.create_commit(repository, changes, commit_message=message)
    except _FAILURES as error:
        raise ResultError(f"{repository}: the hub refused: {first_line(error)}") from None
    return str(done.commit_url)
