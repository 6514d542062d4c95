"""A GGUF file as a folder in hub layout, converted once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import ModelError
from ..core.files import cache_folder, file_sha256
from .pretrained import pretrained


def from_gguf(path: Path) -> Path:
    """The dequantised model as a hub-layout folder, made once and kept under the file's hash.

    It is built beside its place and renamed: of two processes that convert the same file at once,
    the second takes what the first made. Raises `ModelError` for a file that cannot be read and a
    cache that cannot be written.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"'{path}' is not a GGUF file: it does not begin with 'GGUF'")
        target = cache_folder() / "gguf" / file_sha256(path)[:16]
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror or error}") from None
    if _is_whole(target):
        return target
    model, tokenizer = pretrained(str(path.parent), str(path), torch.float32, gguf=path.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=".building-"))
        try:
            write_hub_folder(model, tokenizer, building)
            _put_in_place(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot write the cache {target}: {error.strerror or error}") from None
    return target


def _is_whole(folder: Path) -> bool:
    return (folder / "complete").exists()


def write_hub_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Configuration, tokenizer and weights in hub layout, in a folder that is there."""
    config = AutoConfig.for_model(**{**model.config.to_dict(), "quantization_config": None})
    delattr(config, "quantization_config")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "complete").touch()


def _put_in_place(building: Path, target: Path) -> None:
    try:
        building.rename(target)
    except OSError:
        if not _is_whole(target):
            raise
