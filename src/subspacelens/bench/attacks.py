"""Cases that once fooled an audit, planted at every MLP of the benchmark: rows, not rates."""

from __future__ import annotations

from dataclasses import replace

from ..audit.controls.spikes import Plan

PLAIN = Plan(
    k=1,
    fldd=0.6,
    within=0.1,
    shared=0.0,
    drift=0.02,
    angle=45.0,
    mix=45.0,
    column=2.0,
    write="gradient",
)
ATTACKS: dict[str, tuple[Plan, str]] = {
    "faithful, another unit cancels its noise": (replace(PLAIN, cancels="noise"), "faithful"),
    "faithful, another unit takes most of it back": (replace(PLAIN, cancels="feature"), "faithful"),
    "faithful, three other units write the same": (replace(PLAIN, parallel=4), "faithful"),
    "two dimensions, one faithful, one illusory": (PLAIN, "halves"),
    "illusory, its dormant writes what a channel does, and varies": (
        replace(PLAIN, wakes="channel", drift=0.3),
        "illusory",
    ),
    "illusory, its sensor has the channel's very noise": (
        replace(PLAIN, wakes="channel", shared=1.0),
        "illusory",
    ),
    "illusory, its dormant writes what the site does": (replace(PLAIN, wakes="site"), "illusory"),
    "illusory, its sensor writes what nobody reads": (replace(PLAIN, inert=True), "illusory"),
    "illusory, and such a sensor shares the channel's noise": (
        replace(PLAIN, inert=True, shared=0.7),
        "illusory",
    ),
}
"""What is planted, and the kind of the subspace that is audited in it."""
