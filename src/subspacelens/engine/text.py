"""Plain text, as windows of token ids: what second moments and distortions are measured on.

The text is the user's file, or the embedded default, which is at hand everywhere: half of it is
the reference text that comes with CPython (`pydoc_data.topics`), half is sampled from the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from ..core.errors import LensError, ResultError, TaskError
from ..core.files import cache_folder, regular
from ..core.identity import Identity
from ..core.progress import track
from ..core.tensorfile import TensorFile
from ..model.hooks import check_ready, exclusive
from ..model.lens import LensModel
from ..tasks.tokens import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED = "subspacelens.sampled-text/1"
WINDOW = 128
SHORTEST = 8
OPENINGS = (
    "The", "In", "A", "When", "It", "He", "She", "Many", "On", "As", "This", "For", "People",
    "During", "There", "Once",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """`windows`: token ids of pieces of text, each at least `SHORTEST` long, without padding."""

    name: str
    windows: tuple[tuple[int, ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.windows:
            raise TaskError(f"corpus {self.name}: fewer than {SHORTEST} tokens of text")

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows))

    @cached_property
    def sha256(self) -> str:
        """Content hash over the token ids of all windows, in order."""
        digest = hashlib.sha256()
        for window in self.windows:
            digest.update((",".join(map(str, window)) + ";").encode())
        return digest.hexdigest()

    def batches(self, tokens: int = 2048) -> Iterator[Tensor]:
        """Token ids (n, T) of windows of equal length together, at most `tokens` a batch."""
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for window in self.windows:
            by_length.setdefault(len(window), []).append(window)
        for length, windows in by_length.items():
            rows = max(1, tokens // length)
            for start in range(0, len(windows), rows):
                yield torch.tensor(windows[start : start + rows])


def read_corpus(
    path: Path | str, tokenizer: PreTrainedTokenizerBase, *, tokens: int | None = None
) -> Corpus:
    """A UTF-8 text file, cut into windows of `WINDOW` tokens, the first `tokens` of them.

    Raises `TaskError` if it cannot be read, is not UTF-8, or is too short.
    """
    try:
        text = regular(Path(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}): give a text file") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    windows = _windows(encode(tokenizer, text))
    return Corpus(Path(path).name, _limited(windows, tokens))


def embedded_corpus(lens: LensModel, *, tokens: int = 20_000, seed: int = 0) -> Corpus:
    """About `tokens` tokens: half CPython's reference text in windows drawn by `seed`, half
    sampled from the model at temperature 1 after common first words.

    The sampled half is kept in the cache folder under the identity of the model as it is now.
    """
    documents = (encode(lens.tokenizer, topics[name]) for name in sorted(topics))
    written = [window for document in documents for window in _windows(document)]
    order = torch.randperm(len(written), generator=torch.Generator().manual_seed(seed)).tolist()
    half = _limited((written[i] for i in order), tokens // 2)
    rows = max(1, tokens // 2 // WINDOW)
    return Corpus(f"embedded, {tokens} tokens, seed {seed}", half + _sampled(lens, rows, seed))


@cache
def reference_sha256() -> str:
    """Hash of CPython's reference text, which differs between versions of Python: part of the key
    of whatever `reference_windows` enters."""
    texts = (f"{name}\0{topics[name]}\0" for name in sorted(topics))
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def reference_windows(
    tokenizer: PreTrainedTokenizerBase, count: int, length: int, *, seed: int = 0
) -> tuple[tuple[int, ...], ...]:
    """`count` pieces of `length` tokens of CPython's reference text, from documents drawn by
    `seed`, none of them overlapping. Raises `TaskError` where there are not so many."""
    names = sorted(topics)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    pieces: list[tuple[int, ...]] = []
    for place in order:
        ids = encode(tokenizer, topics[names[place]])
        pieces += [tuple(ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)][:4]
        if len(pieces) >= count:
            return tuple(pieces[:count])
    raise TaskError(f"CPython's reference text has fewer than {count} pieces of {length} tokens")


def sample(lens: LensModel, rows: int, length: int, seed: int) -> Tensor:
    """Token ids (rows, length), drawn from the model at temperature 1; each row begins with one of
    `OPENINGS`. Deterministic in `seed`."""
    generator = torch.Generator().manual_seed(seed)
    starts = [encode(lens.tokenizer, word)[0] for word in OPENINGS]
    ids = torch.tensor([starts[row % len(starts)] for row in range(rows)])[:, None]
    cache = DynamicCache()
    with exclusive(lens.model), torch.no_grad():
        check_ready(lens.model)
        for _ in track(range(length - 1), "sampling text"):
            logits = lens.model(
                input_ids=ids[:, -1:].to(lens.device), past_key_values=cache, use_cache=True
            ).logits[:, -1]
            drawn = torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator)
            ids = torch.cat([ids, drawn], dim=1)
    return ids


def _sampled(lens: LensModel, rows: int, seed: int) -> tuple[tuple[int, ...], ...]:
    identity = lens.identity
    path = cache_folder() / "sampled" / f"{identity.key[:16]}-{rows}x{WINDOW}-{seed}.safetensors"
    kept = from_cache(path, SAMPLED, identity)
    if kept is None:
        kept = {"ids": sample(lens, rows, WINDOW, seed)}
        to_cache(path, SAMPLED, identity, kept)
    return tuple(map(tuple, kept["ids"].tolist()))


def from_cache(path: Path, format: str, identity: Identity) -> Mapping[str, Tensor] | None:
    """The tensors of a file in the cache folder; None unless it is whole and of this model, and
    nobody else's hooks are on the model."""
    if not identity.lasting:
        return None
    try:
        file = TensorFile.load(path, format, "a file of the cache")
        file.made_with.require(identity, str(path))
    except LensError:
        return None
    return file.tensors


def to_cache(path: Path, format: str, identity: Identity, tensors: Mapping[str, Tensor]) -> None:
    """Keeps what `from_cache` reads. A cache that cannot be written is done without."""
    if identity.lasting:
        with suppress(ResultError):
            TensorFile(format=format, made_with=identity, tensors=tensors).save(path)


def _windows(ids: Sequence[int]) -> list[tuple[int, ...]]:
    pieces = (tuple(ids[start : start + WINDOW]) for start in range(0, len(ids), WINDOW))
    return [piece for piece in pieces if len(piece) >= SHORTEST]


def _limited(windows: Iterable[tuple[int, ...]], tokens: int | None) -> tuple[tuple[int, ...], ...]:
    """Windows from the first on until there are `tokens` of them, or all."""
    taken: list[tuple[int, ...]] = []
    left = tokens
    for window in windows:
        if left is not None and left <= 0:
            break
        taken.append(window)
        left = None if left is None else left - len(window)
    return tuple(taken)
