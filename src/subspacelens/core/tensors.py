"""Hashes of a model's tensors as they are now, at the cost of reading them once.

Hashing every byte takes seconds for a large model, and copies it from its device. So a tensor is
hashed again only if its place, its version, or a checksum over all of its bytes has moved: an
integer product on the device itself, which notices what `.data` is used for behind autograd's back.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .errors import ModelError

_hashed: WeakKeyDictionary[nn.Module, dict[str, tuple[tuple, str]]] = WeakKeyDictionary()
_CHUNK = 2**16
_BLOCK = 2**22
"""Words in one row of a checksum, and in what is multiplied at once."""


def tensors_sha256(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash over names, shapes, dtypes and bytes of tensors of a model, in the order of their names.

    Raises `ModelError` where one is not in memory.
    """
    memo = _hashed.setdefault(model, {})
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        if tensor.is_meta:
            raise ModelError(
                f"{name} is not in memory (offloaded to a disk), so that nobody can tell whose "
                "numbers come out: load the model whole"
            )
        state = _state(tensor)
        if name not in memo or memo[name][0] != state:
            memo[name] = state, _sha256(tensor)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {memo[name][1]};".encode())
    return digest.hexdigest()


def _sha256(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def _state(tensor: Tensor) -> tuple:
    """Moves whenever the tensor is replaced, written to in place, or holds other bytes."""
    moved = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), moved, tuple(tensor.shape), tensor.dtype, _checksum(tensor.detach())


@torch.no_grad()
def _checksum(tensor: Tensor) -> bytes:
    """Two sums over all bytes with random weights, a pair for each chunk: of the bytes as 64-bit
    integers, where any change shows but an even number of flips of a word's highest bit; and of the
    values as they are, where flipped signs show."""
    flat = tensor.contiguous().view(-1)
    values = flat if flat.is_floating_point() and flat.dtype.itemsize >= 4 else flat.float()
    data = flat.view(torch.uint8)
    short = -len(data) % 8
    if short or data.storage_offset() % 8:
        data = torch.nn.functional.pad(data, (0, short))
    return b"".join(_weighted(x) for x in (data.view(torch.int64), values))


def _weighted(x: Tensor) -> bytes:
    """Σ wᵢxᵢ over each `_CHUNK` of x (n,); integers wrap around."""
    weights = _weights(x.dtype, x.device)
    whole = len(x) // _CHUNK * _CHUNK
    blocks = [block.view(-1, _CHUNK) for block in x[:whole].split(_BLOCK)] if whole else []
    sums = [
        block @ weights if x.is_cpu or x.is_floating_point() else (block * weights).sum(1)
        for block in blocks
    ]
    sums.append((x[whole:] * weights[: len(x) - whole]).sum()[None])
    return torch.cat(sums).cpu().view(torch.uint8).numpy().tobytes()


@functools.lru_cache(maxsize=8)
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random weights of one chunk: odd integers, or numbers around zero."""
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.int64:
        drawn = torch.randint(-(2**62), 2**62, (_CHUNK,), generator=generator) * 2 + 1
    else:
        drawn = torch.randn(_CHUNK, generator=generator, dtype=torch.float64).to(dtype)
    return drawn.to(device)
