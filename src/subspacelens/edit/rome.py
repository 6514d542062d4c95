"""ROME (Meng et al. 2022): a rank-1 edit of one MLP that gives a subject a new object.

The key is the activation at the subject's last token; the value is found by gradient descent on
what the MLP writes there, for all facts of a layer in one batched replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import EditError
from ..core.progress import track
from ..core.site import Site
from ..engine.capture import Capture, capture
from ..engine.replay import Replay
from ..engine.text import sample
from ..model.lens import LensModel
from ..tasks.facts import SUBJECT, Fact, fact_prompt, object_token
from ..tasks.pairset import Pair, PairSet, Prompt
from .patch_to_edit import key_vector
from .rank_one import RankOneEdit
from .second_moments import SecondMoment

ESSENCE = "{} is a"
SNIPPET = 8


@dataclass(frozen=True, kw_only=True)
class RomeRecipe:
    """How the values of an edit are sought: the loss, the optimiser and its limits.

    `steps` of Adam with rate `lr` on -log p(new object) averaged over `prefixes` texts before
    the prompt (and none), plus `kl` times the divergence of what follows "{subject} is a", plus
    `decay` ‖δ‖/‖m‖²; ‖δ‖ stays within `clamp` times ‖m‖, m being what the MLP writes by itself.
    Raises `EditError` for numbers that make no recipe."""

    steps: int = 20
    lr: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 4.0
    prefixes: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.prefixes < 0 or self.clamp <= 0:
            raise EditError(f"{self}: give steps >= 1, prefixes >= 0 and clamp > 0")


@dataclass(frozen=True, eq=False)
class RomePrompts:
    """The prompts of many facts, run once for all layers, and the recipe that they were made for.

    `fact_of` (n,) numbers the fact of each prompt; `essence` (n,) marks those of the form
    "{subject} is a". A fact's bare prompt is its first.
    """

    captured: Capture = field(repr=False)
    recipe: RomeRecipe
    fact_of: Tensor
    essence: Tensor

    @property
    def bare(self) -> Tensor:
        """The number of each fact's bare prompt, (facts,)."""
        facts = int(self.fact_of.max()) + 1
        return torch.stack([(self.fact_of == i).nonzero()[0, 0] for i in range(facts)])


def rome_prompts(
    lens: LensModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    recipe: RomeRecipe | None = None,
    *,
    memory: int | None = None,
) -> RomePrompts:
    """Runs every prompt that the edits of `facts` at `layers` need, once for all layers; `memory`
    is what replays of them may use, in bytes.

    Raises `EditError` where there are no facts, `TaskError` for a fact whose object has no token of
    its own, and what `capture` raises.
    """
    if not facts:
        raise EditError("no facts to edit")
    recipe = recipe or RomeRecipe()
    texts = _snippets(lens, recipe)
    pairs: list[Pair] = []
    owners: list[int] = []
    essence: list[bool] = []
    for number, fact in enumerate(facts):
        prompts = [fact_prompt(lens.tokenizer, fact)]
        prompts += [fact_prompt(lens.tokenizer, fact, f"{text} {fact.text}") for text in texts]
        prompts.append(essence_prompt(lens, fact))
        new, true = (object_token(lens.tokenizer, o) for o in (fact.new, fact.answer))
        pairs += [
            Pair(base=prompt, source=prompt, answer=new, target=true, template=fact.relation)
            for prompt in prompts
        ]
        owners += [number] * len(prompts)
        essence += [False] * (len(prompts) - 1) + [True]
    sites = [Site(layer, stream, SUBJECT) for layer in layers for stream in ("mlp_act", "mlp_out")]
    captured = capture(lens, PairSet("rome", "edit", tuple(pairs)), sites, memory=memory)
    return RomePrompts(captured, recipe, torch.tensor(owners), torch.tensor(essence))


def essence_prompt(lens: LensModel, fact: Fact) -> Prompt:
    return fact_prompt(lens.tokenizer, fact, ESSENCE.format(fact.subject))


def rome(prompts: RomePrompts, layer: int, moment: SecondMoment) -> list[RankOneEdit]:
    """One edit a fact at `layer`, by the recipe of ROME (Meng et al. 2022, appendix E.5).

    b = Σ⁻¹k / (xᵀΣ⁻¹k) with k the mean key over the prefixes and x the key of the bare prompt, and
    a = δ, so that the MLP writes m + δ there. `moment` is Σ of `mlp_act` at this layer.
    Deterministic. Raises `EditError` for a singular Σ or a key of zeros.

    >>> moment = second_moments(lens, [6], embedded_corpus(lens))[6]
    >>> edits = rome(rome_prompts(lens, facts, [6]), 6, moment)
    """
    keys = prompts.captured.base[Site(layer, "mlp_act", SUBJECT)].double().cpu()
    bare = prompts.bare
    asked = ~prompts.essence
    mean = torch.stack([keys[asked & (prompts.fact_of == i)].mean(0) for i in range(len(bare))])
    b = key_vector(moment, mean)
    b = b / (b * keys[bare]).sum(-1, keepdim=True)
    a = _values(prompts, layer)
    return [RankOneEdit(layer, a_row, b_row) for a_row, b_row in zip(a, b, strict=True)]


@torch.enable_grad()
def _values(prompts: RomePrompts, layer: int) -> Tensor:
    """δ (facts, d_model): what the MLP is to write more at the subject."""
    recipe, replay = prompts.recipe, prompts.captured.at(Site(layer, "mlp_out", SUBJECT))
    size = replay.base[prompts.bare].norm(dim=-1, keepdim=True)
    owner, essence = prompts.fact_of.to(size.device), prompts.essence.to(size.device)
    share = 1 / torch.bincount(owner[~essence]).to(size)
    delta = torch.zeros(len(size), replay.lens.map.d_model).to(size).requires_grad_(True)
    optimiser = torch.optim.Adam([delta], lr=recipe.lr)
    before = _essence_before(replay, essence)
    for _ in track(range(recipe.steps), f"ROME values at layer {layer}"):
        optimiser.zero_grad()
        for piece in replay.pieces():
            rows = piece.pairs.to(size.device)
            logs = piece.logits(delta[owner[rows]][None])[0].float().log_softmax(-1)
            new = replay.answers[piece.pairs, 0].to(logs.device)
            surprise = -logs.gather(1, new[:, None])[:, 0] * share[owner[rows]]
            loss = surprise[~essence[rows]].sum()
            if bool(essence[rows].any()):
                here = essence[rows]
                old = torch.stack([before[i] for i in piece.pairs[here.cpu()].tolist()])
                moved = (logs[here].exp() * (logs[here] - old)).sum(-1)
                loss = loss + recipe.kl * moved.sum()
            loss.backward(inputs=[delta])
        decay = recipe.decay * (delta.norm(dim=-1) / size[:, 0] ** 2).sum()
        decay.backward(inputs=[delta])
        optimiser.step()
        with torch.no_grad():
            length = delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            delta.mul_((recipe.clamp * size / length).clamp(max=1))
    return delta.detach().double().cpu()


def _essence_before(replay: Replay, essence: Tensor) -> dict[int, Tensor]:
    """Log-probabilities after each essence prompt, by its number, with nothing changed."""
    before: dict[int, Tensor] = {}
    with torch.no_grad():
        for piece in replay.pieces(gradients=False):
            here = essence[piece.pairs.to(essence.device)]
            if bool(here.any()):
                none = torch.zeros(1, len(piece.pairs), replay.lens.map.d_model)
                logs = piece.logits(none.to(replay.lens.device))[0].float().log_softmax(-1)
                before |= zip(piece.pairs[here.cpu()].tolist(), logs[here], strict=True)
    return before


def _snippets(lens: LensModel, recipe: RomeRecipe) -> list[str]:
    """Short texts sampled from the model, each a sentence of its own."""
    if recipe.prefixes == 0:
        return []
    ids = sample(lens, recipe.prefixes, SNIPPET, recipe.seed)
    return [
        " ".join(str(lens.tokenizer.decode(row, skip_special_tokens=True)).split()) + "."
        for row in ids.tolist()
    ]
