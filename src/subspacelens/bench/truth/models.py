"""Models in which a variable lives at a known place: those that were trained to have it there
(`tools/train_truth.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ...core.site import Site
from ...engine.capture import capture
from ...engine.patches import SubspacePatch
from ...model.lens import LensModel, wrap
from ...tasks.pairset import Task
from .parity import parity_task, tokenizer

DATA = Path(__file__).parent / "data"
CHECK_SEED = 77


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedModel:
    """A model in which z lives at `site`; `basis` (dim, k) there is what was trained, or planted,
    to carry it. `task(train, test, seed)` draws pairs for it. `channels` (dim, k): what carries z
    at other sites, as far as that is known."""

    name: str
    lens: LensModel = field(repr=False)
    site: Site
    basis: Tensor = field(repr=False)
    task: Callable[[int, int, int], Task] = field(default=parity_task, repr=False)
    channels: Mapping[Site, Tensor] = field(default_factory=dict, repr=False)

    @property
    def behind(self) -> Site:
        """The stream behind the site's block, at the same token."""
        return Site(self.site.layer, "resid_post", self.site.label)


def trained_names() -> list[str]:
    """Names of the models that are shipped."""
    return sorted(path.stem for path in DATA.glob("*.json"))


def load_trained(name: str) -> TrainedModel:
    """One of `trained_names`, in float32.

    >>> str(load_trained("mlp").site)
    'L1.mlp_act@SEP'
    """
    facts = json.loads((DATA / f"{name}.json").read_text())
    tensors = load_file(DATA / f"{name}.safetensors")
    basis = tensors.pop("basis.truth")
    model = LlamaForCausalLM(LlamaConfig(**facts["config"])).requires_grad_(False).eval()
    model.load_state_dict(tensors)
    lens = wrap(model, tokenizer(), f"trained-{name}")
    return TrainedModel(name=name, lens=lens, site=Site.parse(facts["site"]), basis=basis)


def check(trained: TrainedModel, pairs: int = 512, seed: int = CHECK_SEED) -> dict[str, float]:
    """Shares of fresh pairs whose likeliest token is what it must be.

    `task`: unpatched, the answer. `swap`: V takes the source's value, the target. `others`:
    everything but V does, the answer. `whole`: the whole component does, the target. `rest`, at an
    MLP: the stream behind it takes all of the source's but what V writes, the answer.
    """
    site = trained.site
    captured = capture(trained.lens, trained.task(1, pairs, seed).test, [site, trained.behind])
    replay = captured.at(site)
    answer, target = replay.answers.T
    part = SubspacePatch(trained.basis).delta(replay.base, replay.source)
    wanted = {
        "swap": (part, target),
        "others": (replay.difference - part, answer),
        "whole": (replay.difference, target),
    }
    tops = replay.delta_outcomes(torch.stack([delta for delta, _ in wanted.values()])).top
    hits = {"task": captured.clean.top == answer}
    hits |= {
        what: top == right for (what, (_, right)), top in zip(wanted.items(), tops, strict=True)
    }
    if site.stream == "mlp_act" and replay.writer is not None:
        behind = captured.at(trained.behind)
        rest = behind.difference - part @ replay.writer.T
        hits["rest"] = behind.delta_outcomes(rest).top == answer
    return {what: float(hit.float().mean()) for what, hit in hits.items()}
