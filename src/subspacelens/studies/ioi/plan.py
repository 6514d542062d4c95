"""How large the study is, and where it looks if the circuit is not to be searched for."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ModelError
from ...core.site import Site
from ...model.lens import LensModel
from .heads import Head


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything. Pairs: to map, to fit on, to audit with and to score controls on
    (`test`), of each kind of held-out text, to watch single heads on, and for the table (`fresh`).
    Then most passes of a fit and of a control's, and repetitions of two controls."""

    map: int
    train: int
    test: int
    held_out: int
    heads: int
    fresh: int
    steps: int
    control_steps: int
    seeds: int
    random_mlps: int


FULL = Sizes(
    map=16, train=192, test=128, held_out=64, heads=64, fresh=2000,
    steps=16, control_steps=16, seeds=5, random_mlps=3,
)  # fmt: skip
QUICK = Sizes(
    map=4, train=48, test=32, held_out=16, heads=12, fresh=64,
    steps=8, control_steps=6, seeds=2, random_mlps=1,
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """Sites and name mover heads that are known beforehand. `bos` puts the tokenizer's first token
    before every prompt, so that the names stand in columns 3 and 5 as in the paper."""

    name: str
    mlps: tuple[Site, ...]
    bottleneck: Site
    name_movers: tuple[Head, ...]
    bos: bool

    def check(self, lens: LensModel) -> None:
        """Raises `ModelError` if the model is too small for the sites and heads."""
        blocks = lens.map.blocks
        layers = 1 + max(layer for layer, _ in self.name_movers)
        heads = 1 + max(head for _, head in self.name_movers)
        if len(blocks) < layers or blocks[0].n_heads < heads:
            raise ModelError(
                f"preset {self.name} needs {layers} layers of {heads} heads; {lens.id} has "
                f"{len(blocks)} of {blocks[0].n_heads}: leave the preset out to search the circuit"
            )


PRESETS = {
    "gpt2": Preset(
        "gpt2",
        (Site(8, "mlp_act", "END"),),
        Site(8, "resid_post", "END"),
        ((9, 6), (9, 9), (10, 0)),
        bos=True,
    )
}
"""The paper's sites and heads (arXiv 2311.17030): GPT-2 small, patched at the last token."""

_SPEC_NAMES = {"gpt2": "gpt2", "openai-community/gpt2": "gpt2"}


def preset_for(lens: LensModel, name: str | None) -> Preset | None:
    """The preset called `name`, or the one that belongs to the model, if any."""
    if name is None:
        name = _SPEC_NAMES.get(lens.id)
        if name is None:
            return None
    if name not in PRESETS:
        raise ModelError(f"unknown preset '{name}': one of {', '.join(PRESETS)}")
    PRESETS[name].check(lens)
    return PRESETS[name]
