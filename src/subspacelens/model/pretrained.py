"""Models and tokenizers by Transformers, of which no code and no pickle is run and every weight was
there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from ..core.errors import LensError, ModelError, first_line

INDEX = "model.safetensors.index.json"


def pretrained(
    source: str,
    name: str,
    dtype: torch.dtype,
    *,
    device: str | None = None,
    gguf: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal LM and the tokenizer in a hub-layout folder, of a hub id, or in the file `gguf` of
    a folder. Messages call it `name`.

    Raises `ModelError`, in one line, for whatever goes wrong: a repository that needs code of its
    own, weights that are missing, of another shape, pickled, or of blocks that the configuration
    does not have.
    """
    where: dict[str, Any] = {"pretrained_model_name_or_path": source, "trust_remote_code": False}
    if gguf is not None:
        where["gguf_file"] = gguf
    try:
        with _quiet():
            if gguf is None:
                config = AutoConfig.from_pretrained(source, trust_remote_code=False)
                _check_config(config)
                _check_index(source)
                _check_amount(Path(source), config)
            both: Any = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=dtype,
                device_map=device,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            model, loaded = both
            _check_weights(model, loaded)
            return model, AutoTokenizer.from_pretrained(**where)
    except LensError as error:
        raise ModelError(f"model '{name}' cannot be loaded: {error}") from None
    except Exception as error:
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = (
                "it needs code from its own repository (auto_map), which is never run: give a "
                "model that Transformers itself knows"
            )
        raise ModelError(f"model '{name}' cannot be loaded: {reason}") from None


def _check_config(config: PretrainedConfig) -> None:
    """An attention implementation of the form owner/name would be downloaded and run. Of quantised
    weights there is no matrix W to split a subspace by."""
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        raise ModelError(
            "its weights are quantised (quantization_config in config.json), so that there are no "
            "matrices to examine: give the model before quantisation, or one that you loaded "
            "yourself and turned back with model.dequantize()"
        )
    attention = getattr(config, "_attn_implementation_internal", None)
    if isinstance(attention, str) and "/" in attention:
        raise ModelError(
            f"its config.json asks for the attention code '{attention}' from the hub, which is "
            "never run: remove attn_implementation from it"
        )


def _check_index(source: str) -> None:
    path = cached_file(
        source,
        INDEX,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return
    files = json.loads(Path(path).read_bytes())["weight_map"].values()
    pickled = sorted({str(file) for file in files if not str(file).endswith(".safetensors")})
    if pickled:
        raise ModelError(
            f"{INDEX} names {pickled[0]}, and only .safetensors files are read: convert the weights"
        )


def _check_amount(folder: Path, config: PretrainedConfig) -> None:
    """What a folder lacks is drawn at random before it is named, which of a far larger model takes
    all memory."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return
    there = 0
    for file in files:
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            there += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if wanted > 2 * there:
        raise ModelError(
            f"its configuration describes {wanted:,} numbers, and the weights hold {there:,}: "
            "config.json is not that of these weights"
        )


def _check_weights(model: PreTrainedModel, loaded: dict[str, Any]) -> None:
    missing, mismatched = sorted(loaded["missing_keys"]), sorted(loaded["mismatched_keys"])
    surplus = [key for key in sorted(loaded["unexpected_keys"]) if _is_of_another_block(model, key)]
    if mismatched:
        key, there, here = mismatched[0]
        raise ModelError(
            f"the weights have {key} as {_shape(there)}, its configuration as {_shape(here)}"
            f"{_more(mismatched)}: config.json is not that of these weights"
        )
    if missing:
        raise ModelError(
            f"the weights lack {missing[0]}{_more(missing)}: the file is not whole, or config.json "
            "is not that of these weights"
        )
    if surplus:
        raise ModelError(
            f"the weights have {surplus[0]}{_more(surplus)}, a block that its configuration does "
            "not have: config.json is not that of these weights"
        )


def _is_of_another_block(model: PreTrainedModel, key: str) -> bool:
    """Whether it is the weight of a block like the model's first, with another number."""
    return re.sub(r"\.\d+\.", ".0.", key) in model.state_dict()


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


def _more(keys: list) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


@contextmanager
def _quiet() -> Iterator[None]:
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
