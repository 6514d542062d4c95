"""Tiny tokenizers built in memory: no hub, no files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

BOS, EOS, UNK = "<s>", "</s>", "<unk>"


def ioi_data() -> dict:
    return json.loads(files("subspacelens.tasks").joinpath("data/ioi.json").read_text())


def ioi_text() -> str:
    """Every word of the IOI task, each after a space."""
    data = ioi_data()
    words = [*data["names"], *data["objects"], *data["places"]]
    templates = [*data["templates"]["train"].values(), *data["templates"]["held_out"].values()]
    return " " + " ".join([*words, *(text.replace("{", "").replace("}", "") for text in templates)])


def bpe_tokenizer(
    text: str, *, bos: bool = False, eos: bool = False, vocab_size: int = 8000
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of `text` is one token, the space before it included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        show_progress=False,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text], trainer)
    _add_ends(tokenizer, bos, eos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for each in messages %}"
    "{% if each.role == 'other' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ each.role }}: {{ each.content }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A `bpe_tokenizer` that adds a beginning-of-text token, with a chat template that has it."""
    tokenizer = bpe_tokenizer(f"{text} user: assistant:", bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def word_tokenizer(words: Iterable[str], *, metaspace: bool = False) -> PreTrainedTokenizerFast:
    """One token a word, anything else unknown. `metaspace`: a word's token begins with ▁, and one
    ▁ is put before every text, as Llama 2 does."""
    words = ["▁", *(f"▁{word}" for word in words)] if metaspace else list(words)
    vocab = {word: index for index, word in enumerate(dict.fromkeys([UNK, BOS, EOS, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    if metaspace:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


@cache
def ioi_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with all IOI words as single tokens (about 1,000 tokens)."""
    return bpe_tokenizer(ioi_text(), bos=bos)


def _add_ends(tokenizer: Tokenizer, bos: bool, eos: bool) -> None:
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{f'{BOS} ' if bos else ''}$A{f' {EOS}' if eos else ''}",
            special_tokens=[(end, tokenizer.token_to_id(end)) for end in (BOS, EOS)],
        )
