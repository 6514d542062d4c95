"""Writes src/subspacelens/bench/truth/data: tiny models in which z lives at a known place.

make truth-models        # or python tools/train_truth.py [NAME ...]; two minutes each on one core

Each is trained until it does the task (`bench/truth/parity.py`), and then on patches at its place
as well: V taken from another prompt must give the answer that the other's z would, everything but V
must leave the answer, and the whole component must do what V does (as in IIT, arXiv 2112.00826, and
SIIT, arXiv 2407.14494). One seed and one thread give the same model on the same machine and version
of torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from subspacelens.bench.truth.models import DATA, check, load_trained
from subspacelens.bench.truth.parity import COLUMNS, WORDS, Draw
from subspacelens.core.geometry import haar
from subspacelens.core.site import Site
from subspacelens.model.hooks import at_columns, on_input, on_output

BATCH, RATE, CLIP = 256, 2e-3, 1.0
BIASED, LEAD, RAMP, STEPS = 300, 0.97, 200, 400
WEIGHT = 2.0
FRAME_SEED = 2311
"""Not a seed of the audit's: no random subspace of its own is V."""
TAUGHT = 2.0
SAMPLES = 4096
LEAST = 0.999


@dataclass(frozen=True)
class Recipe:
    """Where z shall live, and in how many dimensions. For the first `lessons` steps V is also
    taught to be `TAUGHT` or its opposite by z, and what follows to obey when it is set so."""

    site: Site
    dim: int = 1
    lessons: int = 0
    seed: int = 0
    steps: int = STEPS


RECIPES = {
    "mlp": Recipe(Site(1, "mlp_act", "SEP"), lessons=200),
    "stream": Recipe(Site(1, "resid_post", "SEP")),
    "head": Recipe(Site(2, "head_z", "END", head=1), lessons=200),
    "plane": Recipe(Site(2, "resid_post", "END"), dim=2),
}
SHAPE = dict(
    vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=16,
    bos_token_id=0, eos_token_id=2, tie_word_embeddings=False,
)  # fmt: skip


class Passes:
    """Passes of a model that start at the block of a site, and patches there."""

    def __init__(self, model: LlamaForCausalLM, site: Site) -> None:
        self.model, self.site = model, site
        self.layers = model.model.layers
        length = max(COLUMNS.values()) + 1
        positions = torch.arange(length)[None]
        self.angles = model.model.rotary_emb(torch.zeros(1, length, 64), positions)
        width = model.config.head_dim
        self.part = slice(None)
        if site.head is not None:
            self.part = slice(site.head * width, (site.head + 1) * width)

    def entering(self, ids: Tensor) -> Tensor:
        """What enters the site's block, (n, columns, d)."""
        hidden = self.model.model.embed_tokens(ids)
        for layer in self.layers[: self.site.layer]:
            hidden = layer(hidden, position_embeddings=self.angles)
        return hidden

    def read(self, entering: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The site's activation (n, dim), the block's output there (n, d), logits (n, words)."""
        seen: list[Tensor] = []
        after: list[Tensor] = []
        with self._at(len(entering), seen.append), self._behind(len(entering), after.append):
            logits = self._logits(entering)
        return seen[0], after[0], logits

    def patched(self, entering: Tensor, values: Tensor) -> Tensor:
        """Logits with the site's activation replaced."""
        with self._at(len(entering), lambda _: values):
            return self._logits(entering)

    def behind(self, entering: Tensor, values: Tensor) -> Tensor:
        """Logits with the block's output at the site's column replaced."""
        with self._behind(len(entering), lambda _: values):
            return self._logits(entering)

    def _at(self, rows: int, change):
        block = self.layers[self.site.layer]
        place, module = {
            "mlp_act": (on_input, block.mlp.down_proj),
            "head_z": (on_input, block.self_attn.o_proj),
            "resid_post": (on_output, block),
        }[self.site.stream]
        return at_columns(place, module, self._columns(rows), change, part=self.part)

    def _behind(self, rows: int, change):
        return at_columns(on_output, self.layers[self.site.layer], self._columns(rows), change)

    def _columns(self, rows: int) -> Tensor:
        return torch.full((rows,), COLUMNS[self.site.label])

    def _logits(self, hidden: Tensor) -> Tensor:
        for layer in self.layers[self.site.layer :]:
            hidden = layer(hidden, position_embeddings=self.angles)
        return self.model.lm_head(self.model.model.norm(hidden[:, -1]))


def train(name: str, recipe: Recipe) -> tuple[LlamaForCausalLM, Tensor]:
    """The model, and V (dim, k)."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    passes = Passes(model, recipe.site)
    generator = torch.Generator().manual_seed(recipe.seed)
    stream = recipe.site.stream
    width = {"mlp_act": SHAPE["intermediate_size"], "head_z": 16, "resid_post": 64}[stream]
    drawn = torch.Generator().manual_seed(FRAME_SEED + recipe.seed)
    truth = haar(width, recipe.dim, 1, drawn)[0].float()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    knows = 0
    began = time.process_time()
    for step in range(recipe.steps):
        rate = min(1.0, (step + 1) / 50, 3 * (1 - step / recipe.steps) + 0.03)
        optimiser.param_groups[0]["lr"] = RATE * rate
        even = 0.5 + 0.4 * max(0.0, 1 - step / BIASED)
        base, source = (Draw.of(BATCH // 2, generator, even) for _ in range(2))
        entering = passes.entering(torch.cat([base.ids, source.ids]))
        at_site, behind, logits = passes.read(entering)
        right = torch.cat([base.answers(), source.answers()])
        scores = {"task": (logits.argmax(1) == right).float().mean()}
        loss = cross_entropy(logits, right)
        lesson = max(0.0, 1 - step / recipe.lessons) if recipe.lessons else 0.0
        if lesson:
            is_at = at_site @ truth
            z = torch.cat([base.z, source.z])
            loss = loss + lesson * (is_at - signed(z, recipe.dim)).square().mean()
            ordered = torch.randint(2, z.shape, generator=generator)
            values = at_site + (signed(ordered, recipe.dim) - is_at) @ truth.T
            right = torch.cat(
                [base.answers(ordered[: len(base.z)]), source.answers(ordered[len(base.z) :])]
            )
            logits = passes.patched(entering, values)
            loss = loss + lesson * cross_entropy(logits, right)
            scores["ordered"] = (logits.argmax(1) == right).float().mean()
        if knows or scores["task"] > LEAD:
            knows += 1
            terms = interventions(passes, truth, base, source, entering, at_site, behind)
            weight = WEIGHT * min(1.0, knows / RAMP)
            for term, logits, right in terms:
                loss = loss + weight * cross_entropy(logits, right)
                scores[term] = (logits.argmax(1) == right).float().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        if step % 50 == 0:
            line = " ".join(f"{term} {float(score):.3f}" for term, score in scores.items())
            spent = time.process_time() - began
            print(f"{name} {step} {spent:.0f} s loss {loss.item():.3f} {line}", flush=True)
    return model, truth


def signed(z: Tensor, dim: int) -> Tensor:
    """What V is taught to be, (n, k): `TAUGHT` where z is 1, else its opposite."""
    return TAUGHT * (2.0 * z - 1)[:, None].expand(-1, dim)


def interventions(
    passes: Passes,
    truth: Tensor,
    base: Draw,
    source: Draw,
    entering: Tensor,
    at_site: Tensor,
    behind: Tensor,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, logits and right answers of each loss."""
    of_base, change = at_site[: len(base.ids)], at_site.chunk(2)[1] - at_site.chunk(2)[0]
    other, same = base.answers(source.z), base.answers()
    part = (change @ truth) @ truth.T
    wanted = {"swap": (part, other), "others": (change - part, same), "whole": (change, other)}
    entered = entering[: len(base.ids)]
    logits = passes.patched(
        entered.repeat(len(wanted), 1, 1), torch.cat([of_base + d for d, _ in wanted.values()])
    )
    for (name, (_, right)), of_one in zip(wanted.items(), logits.chunk(len(wanted)), strict=True):
        yield name, of_one, right
    if passes.site.stream == "mlp_act":
        write = passes.layers[passes.site.layer].mlp.down_proj
        rest = behind.chunk(2)[1] - write(part)
        yield "rest of the column", passes.behind(entered, rest), same


def main() -> None:
    torch.set_num_threads(1)
    DATA.mkdir(exist_ok=True)
    for name in sys.argv[1:] or RECIPES:
        recipe = RECIPES[name]
        model, truth = train(name, recipe)
        weights = {key: x.detach().half().contiguous() for key, x in model.state_dict().items()}
        save_file(
            weights | {"basis.truth": truth.contiguous()},
            DATA / f"{name}.safetensors",
        )
        facts = dict(site=str(recipe.site), seed=recipe.seed, steps=recipe.steps, config=SHAPE)
        about = DATA / f"{name}.json"
        about.write_text(json.dumps(facts | {"scores": {}}, indent=1) + "\n")
        scores = check(load_trained(name), SAMPLES)
        about.write_text(json.dumps(facts | {"scores": scores}, indent=1) + "\n")
        print(name, *(f"{what} {score:.4f}" for what, score in scores.items()), flush=True)
        if min(scores.values()) < LEAST:
            sys.exit(f"{name} does not do what it was trained to do: another seed, or more steps")


if __name__ == "__main__":
    main()
