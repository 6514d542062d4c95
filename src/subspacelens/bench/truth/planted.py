"""Tiny random models into which a circuit was planted by hand, and their task.

`BOS n n n d n SEP QRY`: the word d says z, and z alone says which of two words comes next. A head
of the last token looks at d, reads z along one direction and writes it along another, u. That is
answered as it is, or first written anew, along another direction again, by two units of an MLP. In
an MLP behind these lie a sensor, a unit that follows z and writes nothing, and a dormant, which
writes what is answered and does not follow z: the illusion that DAS can find. All other weights are
random and act too, so that what carries z varies with all else, and z's words differ in more than
z. What was planted is checked by interventions (`check`) before it is truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ...core.geometry import haar
from ...core.site import Site
from ...model.lens import wrap
from ...tasks.pairset import Pair, PairSet, Task
from .models import TrainedModel, check
from .parity import (
    COLUMNS,
    FIRST_ANSWER,
    FIRST_NAME,
    FIRST_OPERAND,
    NAMES,
    OPERANDS,
    WORDS,
    prompt,
    tokenizer,
)

WIDTH, LAYERS, HEADS = 64, 4, 4
SHAPE: dict[str, Any] = dict(
    vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=2 * WIDTH,
    num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
    max_position_embeddings=16, bos_token_id=0, eos_token_id=2, tie_word_embeddings=False,
)  # fmt: skip
SEP, QRY = 1, 2
SHARP = 1.5
"""Of the head's query and key: it looks at d and hardly anywhere else."""
DRIVEN = 3.0
"""What enters the nonlinearity of a planted unit, up to its sign."""
NATS = 5.0
"""By how much the model prefers its answer, about."""
SAYS, MOVES, LOUD = (0.5, 2.0), (1.0, 3.0), (0.02, 0.05)
LEAST = 0.99
"""A model is truth where so many pairs answer every intervention of `check` as they must."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to plant: the head, at `layer`; the layer of the MLP that writes z anew, if one does;
    that of the `trap`. `says`: how far a word is moved by z, `moves`: how far the stream of the
    last token is, in lengths of an embedding; `loud`: the standard deviation of all other weights.
    """

    layer: int
    head: int
    mlp: int | None
    trap: int
    says: float
    moves: float
    loud: float

    @classmethod
    def drawn(cls, generator: torch.Generator) -> Plan:
        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (1,), generator=generator))

        def log_uniform(low: float, high: float) -> float:
            return low * (high / low) ** float(torch.rand(1, generator=generator))

        anew = bool(number(0, 1))
        layer = number(0, LAYERS - 3 if anew else LAYERS - 2)
        mlp = number(layer + 1, LAYERS - 2) if anew else None
        return cls(
            layer=layer, head=number(0, HEADS - 1), mlp=mlp,
            trap=number((layer if mlp is None else mlp) + 1, LAYERS - 1),
            says=log_uniform(*SAYS), moves=log_uniform(*MOVES), loud=log_uniform(*LOUD),
        )  # fmt: skip


def load_planted(number: int) -> TrainedModel:
    """The planted model of this number, in float32: the same every time.

    >>> planted = load_planted(3)
    >>> str(planted.site), list(map(str, planted.channels))
    """
    generator = torch.Generator().manual_seed(number)
    plan = Plan.drawn(generator)
    frame = haar(WIDTH, 5, 1, generator)[0].float()
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.copy_(plan.loud * torch.randn(parameter.shape, generator=generator))
    _plant(model, plan, frame, generator)
    lens = wrap(model, tokenizer(), f"planted-{number}")
    channels = _channels(plan, frame)
    site = Site(plan.layer, "resid_post", "END")
    return TrainedModel(
        name=f"planted-{number}", lens=lens, site=site, basis=channels[site], task=planted_task,
        channels=channels,
    )  # fmt: skip


def planted_models(count: int) -> Iterator[TrainedModel]:
    """The first `count` of the planted models whose planting is borne out by interventions, of at
    most four times as many."""
    for number in range(4 * count):
        planted = load_planted(number)
        if min(check(planted).values()) >= LEAST:
            yield planted
            count -= 1
        if count == 0:
            return


def _plant(model: LlamaForCausalLM, plan: Plan, frame: Tensor, generator: torch.Generator) -> None:
    says, carries, anew, here, marked = frame.T
    layers: Any = model.model.layers
    root = WIDTH**0.5
    embedding = model.model.embed_tokens.weight
    embedding.copy_(torch.randn(embedding.shape, generator=generator) / root)
    for word in range(OPERANDS):
        embedding[FIRST_OPERAND + word] += marked + (2 * (word % 2) - 1) * plan.says * says
    embedding[QRY] += here

    word, last = (2 + plan.says**2) ** 0.5, (2 + plan.moves**2) ** 0.5
    width = WIDTH // HEADS
    rows = slice(plan.head * width, (plan.head + 1) * width)
    attention = layers[plan.layer].self_attn
    still = rows.start + width // 2 - 1
    for projection, looks in ((attention.q_proj, here), (attention.k_proj, marked)):
        projection.weight[rows] = 0
        projection.weight[still] = SHARP * looks
    attention.v_proj.weight[rows.start] = says * word / (plan.says * root)
    attention.o_proj.weight[:, rows.start] = plan.moves * carries

    driven = DRIVEN * last / (plan.moves * root)
    if plan.mlp is not None:
        mlp = layers[plan.mlp].mlp
        for unit, sign in enumerate((1, -1)):
            mlp.gate_proj.weight[unit] = sign * driven * carries
            mlp.up_proj.weight[unit] = here * last / root
            mlp.down_proj.weight[:, unit] = sign * anew * plan.moves / DRIVEN
    answered = carries if plan.mlp is None else anew
    length = last if plan.mlp is None else math.hypot(last, plan.moves)
    trap = layers[plan.trap].mlp
    trap.gate_proj.weight[2] = driven * answered * length / last
    trap.up_proj.weight[2] = here * length / root
    trap.down_proj.weight[:, 2] = 0
    for projection in (trap.gate_proj, trap.up_proj):
        projection.weight[3] -= frame @ (frame.T @ projection.weight[3])
    trap.down_proj.weight[:, 3] = plan.moves * answered
    towards = NATS * length / (2 * plan.moves * root) * answered
    model.lm_head.weight[FIRST_ANSWER] -= towards
    model.lm_head.weight[FIRST_ANSWER + 1] += towards


def _channels(plan: Plan, frame: Tensor) -> dict[Site, Tensor]:
    """By site the direction (dim, 1) that carries z there."""
    says, carries, anew, _, _ = frame.T
    width = WIDTH // HEADS
    found = {Site(layer, "resid_post", "B"): says for layer in range(plan.layer)}
    found[Site(plan.layer, "head_z", "END", plan.head)] = torch.eye(width)[0]
    found[Site(plan.layer, "attn_out", "END")] = carries
    for layer in range(plan.layer, LAYERS):
        written = plan.mlp is not None and layer >= plan.mlp
        found[Site(layer, "resid_post", "END")] = anew if written else carries
    if plan.mlp is not None:
        units = torch.zeros(2 * WIDTH)
        units[0], units[1] = 0.5**0.5, -(0.5**0.5)
        found[Site(plan.mlp, "mlp_act", "END")] = units
    return {site: direction[:, None] for site, direction in found.items()}


def planted_task(train: int = 128, test: int = 128, seed: int = 0) -> Task:
    """Pairs whose base and source differ in z; all words are drawn anew for each.

    >>> planted_task(train=64, test=64).test[0].base.text
    """
    generator = torch.Generator().manual_seed(seed)
    count = train + test
    z = torch.randint(2, (count,), generator=generator)
    base, source = (_ids(each, generator) for each in (z, 1 - z))
    pairs = tuple(
        Pair(
            base=prompt(base[row]), source=prompt(source[row]), answer=FIRST_ANSWER + own,
            target=FIRST_ANSWER + 1 - own, template="planted", z=(own, 1 - own),
        )
        for row, own in enumerate(z.tolist())
    )  # fmt: skip
    splits = (PairSet("planted", "train", pairs[:train]), PairSet("planted", "test", pairs[train:]))
    return Task("planted", *splits)


def _ids(z: Tensor, generator: torch.Generator) -> Tensor:
    """Token ids (n, 8) of prompts that say z (n,)."""
    count = len(z)
    ids = FIRST_NAME + torch.randint(NAMES, (count, max(COLUMNS.values()) + 1), generator=generator)
    ids[:, 0] = 0
    ids[:, COLUMNS["SEP"]], ids[:, COLUMNS["END"]] = SEP, QRY
    word = 2 * torch.randint(OPERANDS // 2, (count,), generator=generator) + z
    ids[:, COLUMNS["B"]] = FIRST_OPERAND + word
    return ids
