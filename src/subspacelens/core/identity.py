"""Whose numbers these are: a value that is equal for equal models and for no others.

It is read from the model as it is now, each time it is asked for, because a model can change under
the hands of whoever holds it: an edit inside a context, `.data` written to, another `rms_norm_eps`
set on the live module, a steering hook. What can be hashed is hashed. What a hook or a replaced
`forward` does cannot be: it is named in `hooks` together with a token of this process, so that a
model under a foreign hook equals neither the same model without it nor that of another process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from .errors import LensError, ModelError
from .tensors import tensors_sha256

MODEL = ("weights", "config", "buffers", "settings", "hooks")
"""What a subspace or an edit needs to be the same: the function that the model computes."""

NUMBERS = (*MODEL, "dtype", "device", "versions")
"""What stored activations and results need to be the same: whatever moves a digit."""

_IN_WORDS = {
    "weights": "its weights",
    "config": "its configuration",
    "buffers": "its buffers",
    "settings": "the settings of its modules",
    "hooks": "the hooks on it",
    "dtype": "its dtype",
    "device": "its device",
    "versions": "the library versions",
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A model at one moment.

    `id` is only its name: two models are equal whatever they are called. `weights`, `config`,
    `buffers` and `settings` (classes and plain attributes of all modules) are SHA-256 hashes;
    `hooks` names what others hooked into it and is empty where nobody did; `dtype` and `device` are
    those of its parameters; `versions` are those of the libraries that compute.
    """

    id: str = field(compare=False)
    weights: str = field(repr=False)
    config: str = field(repr=False)
    buffers: str = field(repr=False)
    settings: str = field(repr=False)
    hooks: str
    dtype: str
    device: str
    versions: str

    @property
    def key(self) -> str:
        """One hash of all parts but the name, for keys of caches and stores."""
        parts = [getattr(self, name) for name in NUMBERS]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def lasting(self) -> bool:
        """Whether another process can have the same: not under a foreign hook."""
        return not self.hooks

    def differences(self, other: Identity, parts: Sequence[str] = NUMBERS) -> tuple[str, ...]:
        """Each of `parts` that differs, in words, with both sides."""
        return tuple(
            f"{_IN_WORDS[name]} ({_short(name, ours)}, not {_short(name, theirs)})"
            for name in parts
            if (ours := getattr(self, name)) != (theirs := getattr(other, name))
        )

    def require(
        self,
        other: Identity,
        what: str,
        parts: Sequence[str] = NUMBERS,
        error: type[LensError] = ModelError,
    ) -> None:
        """Raises `error`, naming both models and each of `parts` that differs, unless `other`, the
        model at hand, agrees with this one, which `what` was made with."""
        apart = self.differences(other, parts)
        if apart:
            raise error(
                f"{what} was made with model {self.id}, not with {other.id} as it is now: "
                f"{'; '.join(apart)}"
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Identity:
        """Reads what `to_json` wrote; raises `ValueError` for anything else."""
        parts = json.loads(text)
        names = {part.name for part in fields(cls)}
        if not isinstance(parts, dict) or parts.keys() != names:
            raise ValueError("no identity of a model")
        if not all(isinstance(part, str) for part in parts.values()):
            raise ValueError("an identity of a model with parts that are no text")
        return cls(**parts)


def identity_of(model: nn.Module, id: str) -> Identity:
    """The identity of a model, with its configuration under `model.config`, as it is now.

    Raises `ModelError` where a weight is not in memory (offloaded to a disk).
    """
    parameters = list(model.parameters())
    return Identity(
        id=id,
        weights=weights_sha256(model),
        config=_digest(_config(model)),
        buffers=tensors_sha256(model, _buffers(model)),
        settings=_digest(_settings(model)),
        hooks=_foreign(model),
        dtype=_joined(str(x.dtype).removeprefix("torch.") for x in parameters),
        device=_joined(x.device.type for x in parameters),
        versions=_versions(model),
    )


def weights_sha256(model: nn.Module) -> str:
    """Hash over names, shapes, dtypes and bytes of all parameters, as they are now."""
    return tensors_sha256(model, model.named_parameters())


def _short(name: str, part: str) -> str:
    if not part:
        return "none"
    return part[:12] if name in ("weights", "config", "buffers", "settings") else part


def _joined(names: Iterable[str]) -> str:
    return "+".join(sorted(set(names)))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_IGNORED = {
    "_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "architectures",
    "dtype", "torch_dtype", "use_cache", "return_dict", "output_hidden_states",
    "output_attentions", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id",
    "gradient_checkpointing", "warnings_issued",
}  # fmt: skip
"""Settings that change no activation: names, and what is returned beside it."""

_TRUSTED = ("torch", "transformers", "accelerate", "subspacelens.engine")
"""Packages whose hooks and forwards keep the numbers: moving tensors between devices, recording
outputs, the engine's own forms of norms and attention while it replays."""


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return None if config is None else _plain(config.to_dict())


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers, kept with the weights or not, and tensors that are plain attributes."""
    yield from model.named_buffers()
    for name, module in model.named_modules():
        for key, value in _public(module):
            if isinstance(value, Tensor):
                yield f"{name}.{key}", value


def _settings(model: nn.Module) -> list:
    """For every module its class, who wrote its `forward`, and its plain attributes."""
    return [
        [name, _name(type(module)), _patched(type(module)), _attributes(module)]
        for name, module in model.named_modules()
    ]


def _attributes(module: nn.Module) -> Any:
    return _plain({key: value for key, value in _public(module) if key != "forward"})


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def _public(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(module).items():
        if not (key.startswith("_") or key in _OF_EVERY_MODULE or key in _IGNORED):
            yield key, value


def _plain(value: Any) -> Any:
    """Numbers, text and collections of them, without what changes no activation or is none."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if callable(value):
        return _name(value)
    if isinstance(value, Mapping):
        kept = {str(key): _plain(x) for key, x in value.items() if key not in _IGNORED}
        return {key: x for key, x in kept.items() if x is not _NOTHING}
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [x for x in map(_plain, parts) if x is not _NOTHING]
    return _NOTHING


_NOTHING = object()


def _patched(kind: type) -> str:
    """Who wrote a class's `forward`, where that is not a class that it descends from."""
    wrote = getattr(kind.forward, "__module__", "")
    return "" if wrote in {base.__module__ for base in kind.__mro__} else str(wrote)


_PROCESS = uuid.uuid4().hex
_numbers: WeakKeyDictionary[Callable, int] = WeakKeyDictionary()
_next = count()


def _foreign(model: nn.Module) -> str:
    """What others hooked into the model, with what tells it from all other hooks and processes."""
    names = [
        f"{place or 'the model'}: {_name(function)} #{_number(function)}"
        for place, function in _functions(model)
        if not _name(function).startswith(tuple(f"{package}." for package in _TRUSTED))
    ]
    return f"{', '.join(names)} of process {_PROCESS}" if names else ""


def _functions(model: nn.Module) -> Iterator[tuple[str, Callable]]:
    for hooks in (
        nn_module._global_forward_hooks,
        nn_module._global_forward_pre_hooks,
        nn_module._global_backward_hooks,
        nn_module._global_backward_pre_hooks,
    ):
        yield from (("every module", hook) for hook in hooks.values())
    for name, module in model.named_modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            yield from ((name, hook) for hook in hooks.values())
        for _, value in _public(module):
            if callable(value) and not isinstance(value, (type, nn.Module)):
                yield name, value


def _name(function: Callable) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"


def _number(function: Callable) -> int:
    """The same for the same function as long as it lives; a new one where that cannot be told."""
    try:
        return _numbers.setdefault(function, next(_next))
    except TypeError:
        return next(_next)


def _versions(model: nn.Module) -> str:
    """Of the libraries that compute, and their switches that change rounding."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None) or "own"
    if attention.startswith("subspacelens"):
        attention = "sdpa"
    named = [f"{name} {_version(name)}" for name in ("torch", "transformers")]
    return ", ".join(
        [*named, f"{attention} attention", f"{torch.get_float32_matmul_precision()} matmul"]
    )


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
