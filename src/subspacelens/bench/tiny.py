"""A model so small that a cell takes milliseconds, and pairs for it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

NOUNS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")
VERBS = ("sees", "hears", "meets")
COLOURS = ("red", "blue")


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """Writes a random llama of four blocks in hub layout; returns its folder."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=56,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    make_loud(model, torch.Generator().manual_seed(seed))
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Knows the words of `tiny_pairs`, each a token."""
    words = ["<unk>", "<s>", "</s>", *NOUNS, *VERBS, *COLOURS, "the", "is"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_loud(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draws every matrix anew, so large that every part of the model matters: Transformers' own
    initial scale leaves the blocks nearly silent."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * parameter.shape[1] ** -0.5)


def tiny_pairs(path: Path) -> Path:
    """Writes pairs that differ in one noun, with labels NOUN and END; returns the file."""
    lines = []
    for (base, source), verb in itertools.product(itertools.permutations(NOUNS, 2), VERBS):
        end = 4 + len(base)
        lines.append(
            {
                "base": f"the {base} {verb} the",
                "source": f"the {source} {verb} the",
                "answer": "red",
                "target": "blue",
                "tokens": {"NOUN": {"base": [4, end], "source": [4, 4 + len(source)]}},
                "z": {"base": int(base < source), "source": int(base > source)},
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
