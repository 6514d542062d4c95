"""Files are written whole or not at all, and never over what is not a file."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from subspacelens.core.errors import ResultError
from subspacelens.core.files import read_whole, write_atomically
from subspacelens.core.records import ModelRecord, read_record


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(tmp_path, umask):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, b"1")
    assert path.read_bytes() == b"1" and mode(path) == 0o666 & ~umask
    path.chmod(0o600)
    write_atomically(path, b"22")
    assert path.read_bytes() == b"22" and mode(path) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_link_is_written_through(tmp_path):
    real, link = tmp_path / "data" / "real.json", tmp_path / "link.json"
    real.parent.mkdir()
    link.symlink_to(real)
    for data in (b"new", b"newer"):
        write_atomically(link, data)
        assert link.is_symlink() and real.read_bytes() == data


def test_nothing_but_a_file_is_replaced_or_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "null").symlink_to("/dev/null")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    for name in before:
        with pytest.raises(ResultError, match=f"^cannot write .*{name}: [^\n]*$"):
            write_atomically(tmp_path / name, b"x")
        with pytest.raises(ResultError, match=f"^cannot read .*{name}: [^\n]*$"):
            read_whole(tmp_path / name)
        with pytest.raises(ResultError, match=f"^cannot read .*{name}: [^\n]*$"):
            read_record(ModelRecord, tmp_path / name, "record")
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before
    listening.close()


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path):
    path = tmp_path / ("x" * 250 + ".json")
    write_atomically(path, b"1")
    assert path.read_bytes() == b"1"
    with pytest.raises(ResultError, match="too long"):
        write_atomically(tmp_path / ("x" * 300), b"1")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"x" * 2048)
    assert read_whole(path, 2048) == b"x" * 2048
    with pytest.raises(ResultError, match="larger than"):
        read_whole(path, 2047)
    os.truncate(path, 2**40)
    with pytest.raises(ResultError, match="larger than 256 MiB"):
        read_whole(path)


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
