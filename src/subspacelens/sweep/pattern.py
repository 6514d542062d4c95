"""Patterns of sites: `L*.mlp_act@END`, `L10-20.resid_post@S2`, `L3,5.head_z.*@*`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.errors import SiteError
from ..core.site import HEADED, STREAMS, Site
from ..model.mapping.values import ModelMap

_NUMBERS = r"\*|[0-9]{1,6}(?:-[0-9]{1,6})?(?:,[0-9]{1,6}(?:-[0-9]{1,6})?)*"
_FORM = re.compile(rf"L({_NUMBERS})\.([a-z_]+|\*)(?:\.({_NUMBERS}))?@([^@\s/\\]+)")


@dataclass(frozen=True)
class Shape:
    """What a pattern needs to know of a model: for each block the streams that it lacks, with the
    reason, and how many heads it has in each stream that has any."""

    missing: tuple[dict[str, str], ...]
    heads: tuple[dict[str, int], ...]

    @classmethod
    def of(cls, model_map: ModelMap) -> Shape:
        blocks = model_map.blocks
        heads = ({s: b.heads(s) for s in HEADED if s not in b.missing} for b in blocks)
        return cls(tuple(dict(b.missing) for b in blocks), tuple(heads))


def check_pattern(text: str) -> str:
    """The text itself. Raises `SiteError` unless it is a site or a pattern of sites."""
    _parts(text)
    return text


def expand(text: str, shape: Shape, labels: Sequence[str]) -> tuple[Site, ...]:
    """The sites that a pattern names, lowest layer first.

    A `*` takes every layer, stream, head or label that there is; layers and heads may also be lists
    of numbers and ranges. Raises `SiteError` for a layer, head, stream or label that the pattern
    names and the model or the task lacks, and for a pattern that matches nothing.
    """
    layers, stream, heads, label = _parts(text)
    if label != "*" and label not in labels:
        raise SiteError(f"sites '{text}': the task has no label '{label}', only {_listed(labels)}")
    chosen_labels = labels if label == "*" else [label]
    sites = [
        site
        for of_label in chosen_labels
        for layer in _numbers(layers, len(shape.heads), text, "layers")
        for site in _at(text, shape, layer, stream, heads, of_label, layers == "*")
    ]
    if not sites:
        raise SiteError(f"sites '{text}' match nothing in this model")
    return tuple(dict.fromkeys(sites))


def _at(
    text: str, shape: Shape, layer: int, stream: str, heads: str | None, label: str, any_layer: bool
) -> Iterator[Site]:
    for name in STREAMS if stream == "*" else (stream,):
        if name in shape.missing[layer]:
            if stream == "*" or (any_layer and any(name not in m for m in shape.missing)):
                continue
            raise SiteError(f"sites '{text}': layer {layer}: {shape.missing[layer][name]}")
        if heads is None or name not in HEADED:
            yield Site(layer, name, label)
            continue
        for head in _numbers(heads, shape.heads[layer][name], text, "heads"):
            yield Site(layer, name, label, head)


def _parts(text: str) -> tuple[str, str, str | None, str]:
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise SiteError(
            f"sites '{text}' are not of the form L<layers>.<stream>@<label>, "
            "such as L*.mlp_act@END, L10-20.resid_post@S2 or L3,5.head_z.*@END"
        )
    layers, stream, heads, label = match.groups()
    if stream not in (*STREAMS, "*"):
        raise SiteError(f"sites '{text}': unknown stream '{stream}': one of {_listed(STREAMS)}")
    if heads is not None and stream not in (*HEADED, "*"):
        raise SiteError(f"sites '{text}': only {_listed(HEADED)} take head numbers")
    return layers, stream, heads, label


def _numbers(text: str, count: int, pattern: str, what: str) -> list[int]:
    if text == "*":
        return list(range(count))
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    if not numbers or max(numbers) >= count:
        raise SiteError(f"sites '{pattern}': the model has {what} 0 to {count - 1}, not {text}")
    return numbers


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
