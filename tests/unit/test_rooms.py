"""Data flows one way: a room imports only from the rooms below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import subspacelens

SOURCE = Path(subspacelens.__file__).parent
FLOORS = (
    {"core"},
    {"model", "tasks"},
    {"engine"},
    {"interop"},
    {"certify", "fit", "edit"},
    {"measure"},
    {"audit"},
    {"sweep"},
    {"find", "survey"},
    {"studies", "bench"},
    {"report"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(package: Path) -> Iterator[tuple[str, str, str]]:
    """Room, imported room and place of every import from one room of `package` to another."""
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package).parts
        if len(inside) == 1:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            for target in _targets(node, inside, package.name):
                if target != inside[0]:
                    yield inside[0], target, f"{'/'.join(inside)}:{node.lineno}"


def _targets(node: ast.AST, inside: tuple[str, ...], package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = [package, *inside[:-1]][: len(inside) - node.level + 1] if node.level else []
        stem = ".".join([*above, *filter(None, [node.module])])
        names = [f"{stem}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        first, _, rest = name.partition(".")
        if first == package and rest:
            yield rest.split(".")[0]


def upward(package: Path) -> list[str]:
    return [
        f"{room} imports {target}, which is not below it ({place})"
        for room, target, place in imports(package)
        if FLOOR.get(target, len(FLOORS)) >= FLOOR.get(room, -1)
    ]


def test_every_room_has_a_floor():
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert rooms == set(FLOOR)


def test_no_room_imports_upward_or_beside_itself():
    assert not upward(SOURCE)


@pytest.mark.parametrize(
    "line",
    ["from ..audit.verdict import decide", "from subspacelens.audit import Audit",
     "import subspacelens.audit.verdict", "from .. import audit",
     "def late():\n    from ..audit import Audit"],
)  # fmt: skip
def test_an_upward_import_is_named(tmp_path, line):
    package = tmp_path / "subspacelens"
    (package / "engine").mkdir(parents=True)
    (package / "engine/replay.py").write_text(f"{line}\n")
    (found,) = upward(package)
    assert found.startswith("engine imports audit, ") and "engine/replay.py" in found


def test_tests_mirror_the_rooms():
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} <= set(FLOOR)
