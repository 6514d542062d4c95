"""Tensors on disk: what they are, whose they are, and whether they are whole."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from subspacelens.core.errors import EditError, ResultError
from subspacelens.core.identity import identity_of
from subspacelens.core.tensorfile import StoredFile, TensorFile, writing

FORMAT = "subspacelens.test/2"


@pytest.fixture
def file() -> TensorFile:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "none": torch.zeros(0, 2)}
    tensors["half"] = torch.randn(2).to(torch.bfloat16)
    made_with = identity_of(nn.Linear(2, 2), "a model")
    return TensorFile(format=FORMAT, made_with=made_with, tensors=tensors, facts={"site": "X, é"})


def test_what_is_read_is_what_was_written(file, tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    file.save(path)
    assert path.read_bytes() == file.to_bytes()
    again = TensorFile.load(path, FORMAT, "a test")
    assert again.made_with == file.made_with and again.made_with.id == "a model"
    assert again.facts == file.facts and again.tensors.keys() == file.tensors.keys()
    for name, tensor in file.tensors.items():
        assert (
            torch.equal(again.tensors[name], tensor) and again.tensors[name].dtype == tensor.dtype
        )
    assert TensorFile.format_of(path) == FORMAT


def test_what_is_written_by_rows_is_read_whole_and_by_rows(file, tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    like = {name: x for name, x in file.tensors.items() if len(x)}
    said = dict(format=FORMAT, made_with=file.made_with, facts=file.facts)
    with writing(path, {**like, "left": torch.ones(2, 2)}, **said) as rows:
        for name, x in like.items():
            for row in reversed(range(len(x))):
                rows[name][row : row + 1] = x[row : row + 1]
        assert not path.exists()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    whole, stored = TensorFile.load(path, FORMAT, "a test"), StoredFile.open(path, FORMAT, "a test")
    assert (whole.made_with, whole.facts) == (stored.made_with, stored.facts)
    assert whole.facts == file.facts and whole.made_with == file.made_with
    for name, x in {**like, "left": torch.zeros(2, 2)}.items():
        found = stored.tensors[name]
        assert torch.equal(whole.tensors[name], x) and whole.tensors[name].dtype == x.dtype
        assert torch.equal(found[:], x) and (found.shape, found.nbytes) == (x.shape, x.nbytes)
    some = stored.tensors["a"].take(torch.tensor([2, 0, 1, 2, 2]))
    assert torch.equal(some[1:4], file.tensors["a"][[0, 1, 2]])
    assert torch.equal(some.take(torch.tensor([4, 0]))[:], file.tensors["a"][[2, 2]])


def test_every_damaged_byte_of_a_file_of_rows_is_noticed(file, tmp_path):
    path = tmp_path / "x.safetensors"
    said = dict(format=FORMAT, made_with=file.made_with, facts=file.facts)
    with writing(path, {"a": torch.zeros(3, 4)}, **said) as rows:
        rows["a"][:] = torch.randn(3, 4)
    whole = path.read_bytes()
    for place in range(0, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ResultError):
            StoredFile.open(path, FORMAT, "a test")


def test_after_an_error_there_is_no_file_of_rows(file, tmp_path):
    path = tmp_path / "x.safetensors"
    said = dict(format=FORMAT, made_with=file.made_with, facts=file.facts)
    with pytest.raises(KeyError), writing(path, {"a": torch.zeros(3)}, **said):
        raise KeyError
    with pytest.raises(ResultError, match="cannot write"), writing(path, {}, **said):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused_in_one_line(file, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(EditError, match=f"^{path}[^\n]*{message}[^\n]*$"):
            TensorFile.load(path, FORMAT, "a test", EditError)

    path = tmp_path / "x.safetensors"
    refused("cannot be read: No such file")
    os.mkfifo(path)
    refused("not a regular file")
    assert TensorFile.format_of(path) == ""
    path.unlink()
    path.write_bytes(b"\xff" * 100)
    refused("cannot be read as safetensors")
    save_file({"a": torch.zeros(2)}, path)
    refused("is not a test: no 'subspacelens.test/2' mark")
    replace(file, format="subspacelens.test/1").save(path)
    refused("another version of subspacelens")
    replace(file, format="subspacelens.testing/2").save(path)
    refused("is not a test")


def test_the_file_of_a_first_version_is_named_as_such(file, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "subspacelens.test/1", "x": "y"})
    with pytest.raises(ResultError, match="of another version of subspacelens"):
        TensorFile.load(path, FORMAT, "a test")


@pytest.mark.parametrize("part", ["format", "made_with", "facts", "checksum", "tensor"])
def test_nothing_of_it_can_be_exchanged(file, tmp_path, part):
    path = tmp_path / "x.safetensors"
    file.save(path)
    head = head_of(path)
    other = replace(
        file,
        made_with=replace(file.made_with, weights="0" * 64),
        facts={"site": "Y"},
        tensors=dict(file.tensors) | {"a": torch.zeros(3, 4)},
    )
    other.save(path)
    tensors = dict((other if part == "tensor" else file).tensors)
    for value in (head_of(path).get(part), [], {}, 7, "", None, {"site": 3}):
        changed = head if part == "tensor" else head | {part: value}
        save_file(tensors, path, metadata={"subspacelens": json.dumps(changed)})
        if changed != head or part == "tensor":
            with pytest.raises(ResultError, match=r"is damaged|is not a test|another version"):
                TensorFile.load(path, FORMAT, "a test")


@pytest.mark.parametrize("text", ["[]", "7", "{", "[" * 100_000, "{}", '{"format": []}'])
def test_a_head_that_is_none_is_refused(file, tmp_path, text):
    path = tmp_path / "x.safetensors"
    save_file(dict(file.tensors), path, metadata={"subspacelens": text})
    with pytest.raises(ResultError, match=f"^{path}[^\n]*$"):
        TensorFile.load(path, FORMAT, "a test")
    assert TensorFile.format_of(path) in ("", "[]")


def head_of(path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["subspacelens"])
