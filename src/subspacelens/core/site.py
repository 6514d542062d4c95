"""Where to look: a layer, a stream and a token label, written `L18.mlp_act@S2`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import SiteError

STREAMS = ("resid_pre", "resid_mid", "resid_post", "mlp_act", "mlp_out", "attn_out", "head_z")

_FORM = re.compile(r"L(\d+)\.([a-z_]+)(?:\.(\d+))?@([^@\s/\\]+)")


@dataclass(frozen=True, order=True)
class Site:
    """One activation of one block at one labelled token.

    `layer` counts blocks from 0. `stream` is one of `STREAMS`. `label` names the token, as the
    task labels it (`S2`, `END`, ...). `head` picks one attention head of `head_z`; without it
    `head_z` is all heads of the block, one after the other.
    """

    layer: int
    stream: str
    label: str
    head: int | None = None

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise SiteError(f"unknown stream '{self.stream}': one of {', '.join(STREAMS)}")
        if self.head is not None and self.stream != "head_z":
            raise SiteError(f"stream '{self.stream}' has no heads: only head_z takes a head number")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Reads `L18.mlp_act@S2` or `L18.head_z.3@END`; raises `SiteError` for anything else."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise SiteError(
                f"site '{text}' is not of the form L<layer>.<stream>@<label>, "
                "such as L18.mlp_act@S2 or L18.head_z.3@END"
            )
        layer, stream, head, label = match.groups()
        return cls(int(layer), stream, label, None if head is None else int(head))

    def __str__(self) -> str:
        head = "" if self.head is None else f".{self.head}"
        return f"L{self.layer}.{self.stream}{head}@{self.label}"
