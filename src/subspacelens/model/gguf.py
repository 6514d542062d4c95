"""A GGUF file as a folder in hub layout, converted once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from ..core.errors import ModelError
from ..core.files import cache_folder, file_sha256


def from_gguf(path: Path) -> Path:
    """The dequantised model as a hub-layout folder, made once and kept under the file's hash."""
    digest = file_sha256(path)
    target = cache_folder() / "gguf" / digest[:16]
    if (target / "complete").exists():
        return target
    with quiet_transformers():
        try:
            where = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except Exception as error:
            raise ModelError(
                f"'{path}' is not a GGUF file that can be read: {_line(error)}"
            ) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=".building-"))
    except OSError as error:
        raise ModelError(f"cannot write the cache {target.parent}: {error.strerror}") from None
    try:
        config = AutoConfig.for_model(**{**model.config.to_dict(), "quantization_config": None})
        delattr(config, "quantization_config")
        config.architectures = [type(model).__name__]
        config.save_pretrained(building)
        tokenizer.save_pretrained(building)
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
        save_file(state, building / "model.safetensors", metadata={"format": "pt"})
        (building / "complete").touch()
        if not target.exists():
            building.rename(target)
    except OSError as error:
        raise ModelError(f"cannot write the cache {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers' loading bars and warnings off, then as they were."""
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
