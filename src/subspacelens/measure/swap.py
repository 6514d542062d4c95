"""One pair of prompts, patched: what the model says next, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import torch

from ..certify import require
from ..core.site import Site
from ..engine.capture import capture
from ..engine.likely import Likely, likeliest
from ..engine.recall import last_hidden
from ..model.lens import LensModel
from ..tasks.labels import span_of
from ..tasks.pairset import Pair, PairSet
from ..tasks.tokens import tokenize_prompt
from .patch import Change, patch_of

TOP = 5


@dataclass(frozen=True, repr=False, kw_only=True)
class Swap:
    """What the model says after `base`, after `source`, and after `base` with the change at `site`:
    the likeliest next tokens `before`, `expected` and `after`, likeliest first.

    >>> sl.swap(lens, base="2 and 2 is", source="2 and 3 is", site="L17.resid_post@END").after[0]
    Likely(token=' 5', probability=0.4)
    """

    site: Site
    base: str
    source: str
    before: tuple[Likely, ...]
    expected: tuple[Likely, ...]
    after: tuple[Likely, ...]

    @property
    def rows(self) -> dict[str, tuple[Likely, ...]]:
        return {"base": self.before, "source": self.expected, "patched": self.after}

    def __repr__(self) -> str:
        lines = (
            f"  {name:<8}" + "  ".join(f"{each.token!r} {each.probability:.2f}" for each in row)
            for name, row in self.rows.items()
        )
        return "\n".join([f"Swap({self.site})", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th>"
            + "".join(f"<td>{escape(repr(x.token))} {x.probability:.2f}</td>" for x in row)
            + "</tr>"
            for name, row in self.rows.items()
        )
        return f"<b>{escape(str(self.site))}</b><table>{rows}</table>"


def swap(
    lens: LensModel,
    *,
    base: str,
    source: str,
    site: Site | str,
    change: Change | None = None,
    tokens: Mapping[str, str | tuple[str, str]] | None = None,
    top: int = TOP,
    memory: int | None = None,
) -> Swap:
    """Runs `base` with the activation at `site`, or a part of it, from `source`: the `top`
    likeliest next tokens of both prompts and of the patched one.

    `change` is what `patch` takes: None replaces the whole activation. `END` is the last token of
    either prompt; `tokens` gives other labels by a piece of the text that is there once (or
    `Mary#2`, the second), or by two, the base's and the source's. A label may stand in different
    columns of both, so that the activations differ by position too. `memory`: see `patch`.

    Raises `TaskError` for a label that is not found and where both activations are the same, and
    what `patch` raises.

    >>> sl.swap(lens, base="2 and 2 is", source="2 and 3 is", site="L17.resid_post@END")
    >>> sl.swap(lens, base="2 and 2 is", source="2 and 3 is", site="L9.mlp_out@B",
    ...         tokens={"B": ("2#2", "3")})
    """
    site = Site.of(site)
    require(lens, site)
    patch = patch_of(lens, site, change)
    given = {name: (x, x) if isinstance(x, str) else x for name, x in (tokens or {}).items()}
    prompts = []
    for side, text in enumerate((base, source)):
        where = ("base", "source")[side]
        spans = {
            name: span_of(text, pieces[side], f"{where}: label {name}")
            for name, pieces in given.items()
        }
        prompts.append(tokenize_prompt(lens.tokenizer, text, spans, where))
    with torch.no_grad():
        logits = lens.map.tail.logits(last_hidden(lens, prompts, "prompts")).float().cpu()
    answer, target = logits.argmax(-1).tolist()
    pair = Pair(base=prompts[0], source=prompts[1], answer=answer, target=target)
    captured = capture(lens, PairSet("swap", "one", (pair,)), [site], shifted=True, memory=memory)
    replay = captured.at(site).require_difference()
    patched = replay.delta_logits(patch.delta(replay.base, replay.source))
    before, expected, after = likeliest(torch.cat([logits, patched]), top, lens.tokenizer)
    return Swap(site=site, base=base, source=source, before=before, expected=expected, after=after)
