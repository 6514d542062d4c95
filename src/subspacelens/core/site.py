"""Where to look: a layer, a stream and a token label, written `L18.mlp_act@S2`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import SiteError

PROJECTED = ("attn_q", "attn_k", "attn_v")
"""Queries, keys and values, as their projection puts them out: before rotation and norms."""

WHOLE = ("resid_pre", "resid_mid", "resid_post", "mlp_act", "mlp_out", "attn_out")

HEADED = ("head_z", *PROJECTED)
"""Streams that may be taken head by head."""

STREAMS = (*WHOLE, *HEADED)

EXPERT = "expert_act"
"""What the down-projection of one expert reads; a site names the expert, `L3.expert_act.5@END`."""

_FORM = re.compile(r"L([0-9]{1,6})\.([a-z_]+)(?:\.([0-9]{1,6}))?@([^@\s/\\]+)")

LONGEST_LABEL = 64


def label_problem(label: str) -> str | None:
    """Why a text cannot be the label of a token, or None if it can."""
    if not label:
        return "it is empty"
    if len(label) > LONGEST_LABEL:
        return f"it has {len(label)} characters, {LONGEST_LABEL} at most are allowed"
    if not label.isprintable():
        return "it has a character that cannot be printed"
    if "*" in label:
        return "a * stands for every label"
    if any(sign in label for sign in "@/\\"):
        return "@, / and \\ are not allowed"
    return None


def check_stream(stream: str, where: str = "") -> None:
    """Raises `SiteError`, its message after `where`, for what is no stream of any model."""
    if stream not in (*STREAMS, EXPERT):
        known = ", ".join((*STREAMS, EXPERT))
        raise SiteError(f"{where}unknown stream '{stream}': one of {known}")


@dataclass(frozen=True, order=True)
class Site:
    """One activation of one block at one labelled token.

    `layer` counts blocks from 0. `stream` is one of `STREAMS`, or `EXPERT`. `label` names the
    token, as the task labels it (`S2`, `END`, ...). `head` picks one attention head of a stream of
    `HEADED`, of keys and values one of those that the block has, which may be fewer; without it
    such a stream is all heads of the block, one after the other. Of `EXPERT` it is the number of
    the expert, which must be there. Raises `SiteError` for a negative number, an unknown stream, a
    head of another stream, no expert, and a label that cannot be printed.

    >>> Site.parse("L18.mlp_act@S2") == Site(18, "mlp_act", "S2")
    True
    """

    layer: int
    stream: str
    label: str
    head: int | None = None

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise SiteError(f"layer {self.layer}: blocks are counted from 0")
        if self.head is not None and self.head < 0:
            raise SiteError(f"head {self.head}: heads are counted from 0")
        problem = label_problem(self.label)
        if problem is not None:
            raise SiteError(
                f"label {self.label[:LONGEST_LABEL]!r} cannot be part of a site: {problem}"
            )
        check_stream(self.stream, f"site {self}: ")
        if self.stream == EXPERT and self.head is None:
            raise SiteError(f"stream '{EXPERT}' needs the number of an expert, as in {EXPERT}.5")
        if self.head is not None and self.stream not in (*HEADED, EXPERT):
            raise SiteError(
                f"stream '{self.stream}' has no heads: only {', '.join(HEADED)} take a head number"
            )

    @classmethod
    def parse(cls, text: str) -> Site:
        """Reads `L18.mlp_act@S2` or `L18.head_z.3@END`; raises `SiteError` for anything else."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise SiteError(
                f"site '{text[:80]}' is not of the form L<layer>.<stream>@<label>, "
                "such as L18.mlp_act@S2 or L18.head_z.3@END"
            )
        layer, stream, head, label = match.groups()
        return cls(int(layer), stream, label, None if head is None else int(head))

    @classmethod
    def of(cls, site: Site | str) -> Site:
        """The site itself, or what `parse` reads of a text."""
        return cls.parse(site) if isinstance(site, str) else site

    @property
    def read_elsewhere(self) -> bool:
        """Whether a change is read by other tokens than its own at once, past the residual stream
        of its own column: so are keys and values."""
        return self.stream in ("attn_k", "attn_v")

    def __str__(self) -> str:
        head = "" if self.head is None else f".{self.head}"
        return f"L{self.layer}.{self.stream}{head}@{self.label}"
