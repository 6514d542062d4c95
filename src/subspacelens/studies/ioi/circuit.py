"""The circuit, found by patching: who writes the position signal, where it is whole, who reads.

At each label the effect of patching the whole residual stream, layer by layer, is a curve that
rises where the signal is written and falls where later tokens, or later layers, have read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.errors import TaskError
from ...core.records import Record
from ...core.site import Site
from ...engine.capture import capture
from ...measure.maps import PatchingMap, patching_map
from ...measure.readers import ReaderShare, attribute_readers
from ...model.lens import LensModel
from ...tasks import PairSet
from .heads import Head, query_maps, watch
from .plan import Preset

LABELS = ("S2", "END")
STREAMS = ("resid_post", "mlp_act", "attn_out", "head_z")
WHOLE = 0.8
"""A residual stream whose patch has at least this FLDD holds the whole signal."""
NOTABLE = 0.2
"""Share of the largest value at its label from which on a writer or a fall of the curve counts."""
MIDDLE = 3
READERS = 3

_MEASURES = {"fldd": "FLDD", "nats": "nats"}


class Role(Record):
    """Who does what, and the number that says so. `value` is in `unit`."""

    label: str
    role: str
    component: str
    value: float
    unit: str


class PlaceRecord(Record):
    """Where the study looks at one label, and whom the split at the bottleneck stands for."""

    label: str
    bottleneck: str
    mlps: list[str]
    readers: list[str]


class CircuitRecord(Record):
    """`places`: where the study looks. `roles`: all the evidence for who does what."""

    places: list[PlaceRecord]
    name_movers: list[str]
    roles: list[Role]


@dataclass(frozen=True)
class Place:
    """One label: the residual site that holds the whole signal before anything has read it, MLPs
    that the signal passes by on its way to the readers, and the readers' input maps."""

    label: str
    bottleneck: Site
    mlps: tuple[Site, ...]
    readers: tuple[ReaderShare, ...]


@dataclass(frozen=True)
class Circuit:
    """`name_movers`: the heads whose push towards the answer falls most when the last token takes
    the source's residual stream."""

    map: PatchingMap
    places: tuple[Place, ...]
    name_movers: tuple[Head, ...]
    roles: tuple[Role, ...]

    @property
    def record(self) -> CircuitRecord:
        return CircuitRecord(
            places=[
                PlaceRecord(
                    label=place.label,
                    bottleneck=str(place.bottleneck),
                    mlps=[str(site) for site in place.mlps],
                    readers=[share.name for share in place.readers],
                )
                for place in self.places
            ],
            name_movers=[f"{layer}.{head}" for layer, head in self.name_movers],
            roles=list(self.roles),
        )


def find_circuit(
    lens: LensModel,
    pairs: PairSet,
    preset: Preset | None,
    *,
    limit: int,
    memory: int | None = None,
) -> Circuit:
    """Maps the first `limit` of `pairs`, and takes the sites and heads from the map or the preset.

    Raises `TaskError` if no MLP can be patched between writer and reader.
    """
    pairs = pairs[:limit]
    map = patching_map(lens, pairs, STREAMS, LABELS, memory=memory, limit=None)
    roles, marked = [], {}
    for label in LABELS:
        roles += _writers(map, label)
        marked[label] = _between(lens, map, label)
        roles += _passed(map, *marked[label])
    if preset is not None:
        marked = {preset.bottleneck.label: (preset.bottleneck, preset.mlps)}
    end, _ = marked["END"]
    movers, evidence = _name_movers(lens, pairs, end, preset)
    roles += evidence
    places = []
    for label, (bottleneck, mlps) in marked.items():
        replay = capture(lens, pairs, [bottleneck], memory=memory).at(bottleneck)
        shares = attribute_readers(replay, replay.difference)
        strongest = tuple(share for share in shares if share.reader.attention)[:READERS]
        roles += [Role(label=label, role="reader", component=s.name, value=s.attribution,
                       unit="nats by attribution") for s in strongest]  # fmt: skip
        readers = query_maps(lens, pairs, end, movers) if label == "END" else strongest
        places.append(Place(label, bottleneck, mlps, readers))
    for place in places:
        if not place.mlps:
            raise TaskError(f"no MLP that can be patched lies behind the writer at {place.label}")
    return Circuit(map, tuple(places), movers, tuple(roles))


def _column(map: PatchingMap, stream: str, label: str) -> np.ndarray:
    """Effects by layer as a share of the clean logit difference, or, for a model that has none, in
    nats; NaN where a layer lacks the stream."""
    grid = map.effects[label, stream]
    return (grid.fldd if map.measure == "fldd" else grid.nats)[:, 0]


def _writers(map: PatchingMap, label: str) -> list[Role]:
    roles = []
    for stream, role in (("attn_out", "writer"), ("head_z", "writing head")):
        cells = map.strongest(8, stream=stream, label=label)
        least = NOTABLE * max((abs(cell.nats) for cell in cells), default=0.0)
        for cell in cells:
            if cell.nats > 0 and cell.nats >= least:
                roles.append(_patched(map, cell.site, role))
    return roles


def _between(lens: LensModel, map: PatchingMap, label: str) -> tuple[Site, tuple[Site, ...]]:
    """The bottleneck and the MLPs from the writer's layer to before the last reader's."""
    attention = np.nan_to_num(_column(map, "attn_out", label), nan=-np.inf)
    last = len(lens.map.blocks) - 2
    writer = min(int(attention.argmax()), last)
    curve = np.nan_to_num(_column(map, "resid_post", label), nan=-np.inf)
    least = WHOLE * (1.0 if map.measure == "fldd" else curve.max())
    whole = [layer for layer in range(writer, last + 1) if curve[layer] >= least]
    bottleneck = whole[0] if whole else int(curve[writer : last + 1].argmax()) + writer
    reader = max(_falls(curve, bottleneck), default=len(curve) - 1)
    sequential = "resid_mid" in lens.map.blocks[writer].entries
    first = writer if sequential else writer + 1
    middle = [
        Site(layer, "mlp_act", label)
        for layer in range(first, max(reader, first + 1))
        if "mlp_act" in lens.map.blocks[layer].entries
    ]
    return Site(bottleneck, "resid_post", label), tuple(middle[:MIDDLE])


def _falls(curve: np.ndarray, start: int) -> list[int]:
    """Layers after `start` across which the curve falls notably."""
    least = NOTABLE * curve.max()
    steps = range(start + 1, len(curve))
    return [layer for layer in steps if curve[layer - 1] - curve[layer] >= least]


def _passed(map: PatchingMap, bottleneck: Site, mlps: tuple[Site, ...]) -> list[Role]:
    label = bottleneck.label
    curve = _column(map, "resid_post", label)
    roles = [_patched(map, bottleneck, "bottleneck")]
    roles += [_patched(map, site, "MLP in the middle") for site in mlps]
    for layer in _falls(curve, bottleneck.layer):
        fall = float(curve[layer - 1] - curve[layer])
        unit = f"fall of the {_MEASURES[map.measure]} of resid_post"
        roles.append(
            Role(label=label, role="reading layer", component=f"L{layer}", value=fall, unit=unit)
        )
    return roles


def _patched(map: PatchingMap, site: Site, role: str) -> Role:
    value = getattr(map.at(site), map.measure)
    unit = f"{_MEASURES[map.measure]} of its full patch"
    return Role(label=site.label, role=role, component=str(site), value=value, unit=unit)


def _name_movers(
    lens: LensModel, pairs: PairSet, end: Site, preset: Preset | None
) -> tuple[tuple[Head, ...], list[Role]]:
    moved = capture(lens, pairs, [end]).difference(end)
    clean, patched = (watch(lens, pairs, end, delta) for delta in (0 * moved, moved))
    fall = (clean.attribution - patched.attribution).mean(0).flatten()
    turned = (clean.attention - patched.attention).mean(0).flatten()
    heads = clean.heads()
    if preset is None:
        behind = [place for place, (layer, _) in enumerate(heads) if layer > end.layer]
        order = sorted(behind, key=lambda place: -float(fall[place]))[:READERS]
    else:
        order = [heads.index(head) for head in preset.name_movers]
    roles = []
    for place in order:
        name = "L{}.head {}".format(*heads[place])
        for value, unit in ((fall, "nats it pushes less"), (turned, "attention from IO to S")):
            roles.append(
                Role(label="END", role="name mover", component=name, value=float(value[place]),
                     unit=unit)
            )  # fmt: skip
    return tuple(heads[place] for place in order), roles
