"""What stands at a site whose audit or fit failed, while the other sites went on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..core.files import write_atomically
from ..core.records import Record, read_record

SCHEMA = "subspacelens.failure/1"
FAILURE_FILE = "failure.json"


class Failure(Record):
    """Schema `subspacelens.failure/1`: the site, and the one line that says what is wrong."""

    schema_: Literal["subspacelens.failure/1"] = SCHEMA
    site: str
    error: str
    command: str

    model_config = Record.model_config | {
        "alias_generator": lambda name: name.removesuffix("_"),
        "populate_by_name": True,
    }

    def save(self, directory: Path | str) -> Path:
        """Writes `directory/<site>/failure.json` and returns its path."""
        path = Path(directory) / self.site / FAILURE_FILE
        write_atomically(path, self.model_dump_json(indent=1, by_alias=True).encode())
        return path


def load_failures(directory: Path | str) -> list[Failure]:
    """Every `directory`/*/failure.json, in order of their paths. Raises `ResultError` where one is
    no such record."""
    paths = sorted(Path(directory).glob(f"*/{FAILURE_FILE}"))
    return [read_record(Failure, path, f"{SCHEMA} record") for path in paths]
