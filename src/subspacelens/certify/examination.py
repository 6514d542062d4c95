"""All proofs of one site, in order, each a measured error against a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import LensError, ModelError, TaskError
from ..core.geometry import Split
from ..core.site import EXPERT, PROJECTED, Site
from ..engine.capture import Capture, capture
from ..model.hooks import on_output
from ..model.lens import LensModel
from ..tasks.pairset import Pair, PairSet
from .plain_hooks import (
    Attention,
    Watched,
    adding,
    astray,
    generator,
    last_logits,
    part_of,
    place_at,
    projection_of,
    routed_pairs,
    trial_pairs,
    two_of,
)
from .state import state_of


@dataclass(frozen=True)
class Tolerance:
    """`values`: logits, in units of their spread over the vocabulary, and activations, relative to
    their norm. `gradients`: relative to their norm, so that however small the effect of a site is,
    a hook that misses is off by 1. `effect`: what a write must at least do to the logits."""

    values: float
    gradients: float
    effect: float
    reason: str


TOLERANCES = {
    torch.float64: Tolerance(
        1e-5, 1e-4, 1e-5, "some models compute attention weights in float32 whatever the dtype"
    ),
    torch.float32: Tolerance(
        2e-4, 5e-3, 1e-4, "batches of other shapes add up in another order: 2e-5 after 30 blocks"
    ),
    torch.float16: Tolerance(
        0.1, 0.1, 0.01, "dozens of roundings of 5e-4 on the way, other ones in other batches"
    ),
    torch.bfloat16: Tolerance(
        0.5, 0.4, 0.05, "dozens of roundings of 4e-3: 0.03 between two full passes, 0.3 at worst"
    ),
}
KERNEL = 1e-6
"""‖W P_N x‖ may be this share of ‖W‖‖x‖: both are computed in float64, whatever the model's dtype.
"""

SCALES = (1.0, 10.0)
"""Sizes of the random changes, in units of the natural difference between two prompts."""


@dataclass(frozen=True)
class Proof:
    """One measurement: it passed if `error` is at most `tolerance`. `text` says what was compared
    with what."""

    name: str
    passed: bool
    error: float
    tolerance: float
    text: str


def _gap(a: Tensor, b: Tensor, spread: Tensor) -> float:
    """Largest root mean square difference of logits (..., n, v), in units of `spread` (n,)."""
    difference = (a.double() - b.double()).square().mean(dim=-1).sqrt()
    return float((difference / spread).max())


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest relative distance of vectors a (..., d) from b; 0 where both are 0."""
    a, b = a.double(), b.double()
    tiny = torch.finfo(torch.float64).tiny
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=tiny)).max())


def _proof(name: str, error: float, tolerance: float, text: str) -> Proof:
    return Proof(name, bool(error <= tolerance), float(error), tolerance, text)


@dataclass(frozen=True)
class _Hooked:
    """What plain hooks do to prompts, on the CPU, for l labels, m patches, n prompts.

    `untouched` (n, v): logits with the activations written back as they were; `base` (l, n, dim):
    these activations; `read` (l, m, n, dim): what is there after a patch; `logits` (l, m, n, v);
    `output` (l, m, n, d_model): change of what the site's projection puts out, if it has one;
    `gradient` (l, dim): that of logit(answer) - logit(target) in the first patch of prompt 0.
    """

    untouched: Tensor
    base: Tensor
    read: Tensor
    logits: Tensor
    output: Tensor | None
    gradient: Tensor


class Examination:
    """All proofs of one site. At each label several patches are written: random ones of the sizes
    `SCALES`, and, where the site has a writer matrix with a kernel, one inside the kernel."""

    clean: Tensor
    """Logits (n, v) of the base prompts, no hook anywhere."""
    spread: Tensor
    """Their standard deviation over the vocabulary, (n,)."""
    source: Tensor
    """Activations (l, dim) of the first source prompt."""
    patches: Tensor
    """(l, m, dim), the first ones those of `SCALES`."""
    plain: _Hooked
    replays: Tensor
    """Logits (l, 1 + m, n, v) of no patch and of each patch."""

    def __init__(
        self,
        lens: LensModel,
        site: Site,
        pairs: PairSet | None,
        centred: Callable[[], bool],
        clean: Callable[[PairSet], Tensor],
    ) -> None:
        if lens.dtype not in TOLERANCES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in TOLERANCES)
            raise ModelError(f"no site can be certified in {lens.dtype}: load the model in {known}")
        if pairs is not None and site.label not in pairs.labels:
            raise TaskError(f"site {site}: the pairs have no label '{site.label}'")
        self.lens, self.site, self.centred, self._clean = lens, site, centred, clean
        routed = site.stream == EXPERT
        if pairs is not None:
            self.pairs = two_of(pairs)
            self.labels = tuple(dict.fromkeys((site.label, site.label if routed else "END")))
        else:
            self.pairs = routed_pairs(lens, site) if routed else trial_pairs(lens)
            self.labels = ("END",) if routed else ("X", "END")
        self.sites = [replace(site, label=label) for label in self.labels]
        self.tolerance = TOLERANCES[lens.dtype]

    def proofs(self) -> Iterator[Proof]:
        before = dict(state_of(self.lens.model))
        self.clean = self._clean(self.pairs)
        self.spread = self.clean.double().std(dim=-1)
        steps: dict[str, Callable[[], Iterator[Proof]]] = {
            "hook fires": self.fires,
            "kernel": self.kernel,
            "hook identity": self.hooked,
            "heads": self.headed,
            "replay": self.replayed,
            "batch": self.batched,
        }
        for name, step in steps.items():
            try:
                proofs = list(step())
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                kind = "" if isinstance(error, LensError) else f"{type(error).__name__}: "
                text = f"it could not be tried: {kind}{line}"
                proofs = [Proof(name, False, math.inf, 0.0, text)]
            yield from proofs
            if not all(proof.passed for proof in proofs):
                break
        after = dict(state_of(self.lens.model))
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        text = "hooks, forwards, modes and weights are those from before"
        if changed:
            text = f"hooks, forward, mode or weights of {min(changed)} are not those from before"
        yield _proof("left as found", len(changed), 0, text)

    def fires(self) -> Iterator[Proof]:
        """The site is seen once a pass, inside its block."""
        pair = self.pairs[0]
        watched = [Watched.of(self.lens, self.site, p.ids) for p in (pair.base, pair.source)]
        count, text = watched[0].misplaced(self.site.layer, len(self.lens.map.blocks))
        if count == 0:
            base, source = (
                one.activations[0][[prompt.columns[label] for label in self.labels]].double()
                for one, prompt in zip(watched, (pair.base, pair.source), strict=True)
            )
            self.source = source
            natural = torch.maximum((source - base).norm(dim=-1), 0.01 * source.norm(dim=-1))
            self.size = natural / source.shape[-1] ** 0.5
        yield _proof("hook fires", count, 0, text)

    def kernel(self) -> Iterator[Proof]:
        """The projectors of the writer matrix; and the patches that will be written."""
        dim = self.lens.map.dim(self.site)
        x = torch.randn(dim, 1, generator=generator(), dtype=torch.float64)
        kinds = [scale * x[:, 0] for scale in SCALES]
        weight = self.lens.map.writer(self.site)
        if weight is not None:
            mean = self.centred()
            split = Split.of(weight, centred=mean)
            w = weight.detach().cpu().double()
            w = w - w.mean(dim=0, keepdim=True) if mean else w
            row, null = split.row(x), split.null(x)
            error = float((w @ null).norm() / (w.norm() * x.norm()))
            named = "(I - 11ᵀ/d) W" if mean else "W"
            text = f"‖W P_N x‖ / ‖W‖‖x‖ for W = {named}, of rank {split.rank} in {dim} dimensions"
            yield _proof("kernel", error, KERNEL, text.replace("W = W", "W"))
            error = float(((row + null - x).norm() + split.row(null).norm()) / x.norm())
            yield _proof("projectors", error, KERNEL, "‖P_R x + P_N x - x‖ and ‖P_R P_N x‖ / ‖x‖")
            if split.rank < dim:
                kinds.append(null[:, 0] * float(x.norm() / null.norm()))
        self.patches = (self.size[:, None, None] * torch.stack(kinds)).to(self.lens.dtype)

    def hooked(self) -> Iterator[Proof]:
        """Plain hooks on the whole model: the tensor read is the one that is used."""
        self.plain = plain = self._with_hooks()
        allowed, random = self.tolerance.values, len(SCALES)
        error = _gap(plain.untouched, self.clean, self.spread)
        yield _proof("hook identity", error, allowed, "activation written back against no hook")

        written = self.patches[:, :random, None]
        error = _apart(plain.read[:, :random] - plain.base[:, None], written)
        text = "what is read after a write, less what was there, against what was written"
        yield _proof("hook writes", error, allowed, text)

        # At an inner column a site may well have no effect; at END every stream has one.
        moved = plain.logits[:, random - 1].double() - plain.untouched.double()
        effects = moved.square().mean(dim=-1).sqrt() / self.spread
        effect = float(effects.amax(dim=0).min())
        floor = self.tolerance.effect
        text = (
            f"{SCALES[-1]:.0f} times a natural change moves the logits by {effect:.2g} of their "
            f"spread; the error is what is missing to {floor:.2g}"
        )
        yield _proof("hook acts", 0.0 if effect >= floor else floor - effect, 0, text)

        weight = self.lens.map.writer(self.site)
        if weight is not None and plain.output is not None:
            expected = written.double() @ weight.detach().cpu().double().T
            error = _apart(plain.output[:, :random], expected.expand_as(plain.output[:, :random]))
            yield _proof("writer", error, allowed, "change of what the projection puts out, to W δ")
        if self.patches.shape[1] > random:
            error = _gap(plain.logits[:, random], plain.untouched, self.spread)
            text = "logits after a change of natural size inside ker W against those before"
            yield _proof("kernel patch", error, allowed, text)

    def headed(self) -> Iterator[Proof]:
        """A change of queries, keys or values is seen where the head is, and nowhere else."""
        if self.site.stream not in PROJECTED:
            return
        heads = self.lens.map.blocks[self.site.layer].heads(self.site.stream)
        pair, error = self.pairs[0], 0.0
        for which, label in enumerate(self.labels):
            column, delta = pair.base.columns[label], self.patches[which, 0]
            none, changed = (
                Attention.of(self.lens, self.site, pair.base.ids, column, each)
                for each in (0 * delta, delta)
            )
            error = max(error, astray(self.site, heads, none, changed, column, delta))
        names = {"attn_q": "queries", "attn_k": "keys", "attn_v": "values"}
        whose = "its heads" if self.site.head is None else f"head {self.site.head}"
        text = f"what a change of {names[self.site.stream]} does beside {whose} at its own column"
        yield _proof("heads", error, self.tolerance.values, text)

    def replayed(self) -> Iterator[Proof]:
        """Capture and replay against the full passes."""
        plain, allowed = self.plain, self.tolerance.values
        captured = capture(self.lens, self.pairs, self.sites, shifted=True)
        kept = [
            torch.cat([captured.base[site], captured.source[site][:1]]).cpu() for site in self.sites
        ]
        expected = torch.cat([plain.base.double(), self.source[:, None]], dim=1)
        error = _apart(torch.stack(kept), expected)
        yield _proof("capture", error, allowed, "captured activations against a plain hook's")

        self.replays = self._replay(captured)
        error = _gap(self.replays[:, 0], self.clean, self.spread)
        yield _proof("no-op replay", error, allowed, "replay of no patch against a full pass")
        error = _gap(self.replays[:, 1:], plain.logits, self.spread)
        yield _proof("replay", error, allowed, "replayed patches against full passes with a hook")

        differences, gradients = self._replay_gradients(captured)
        answers = torch.tensor([[pair.answer, pair.target] for pair in self.pairs])
        picked = plain.logits[:, 0].gather(-1, answers.expand(len(self.sites), -1, -1)).double()
        full = picked[..., 0] - picked[..., 1]
        error = float(((differences - full).abs() / self.spread).max())
        text = "logit differences from two rows of the unembedding against full passes"
        yield _proof("logit difference", error, 2 * allowed, text)
        error = _apart(gradients, plain.gradient)
        text = "gradients of logit differences against full passes with a hook"
        yield _proof("gradient", error, self.tolerance.gradients, text)

    def batched(self) -> Iterator[Proof]:
        """The shorter prompt alone, and padded to share its batch with the longer one."""
        if len(self.pairs) > 1:
            pair = replace(self.pairs[0], source=self.pairs[0].base)
            alone = capture(self.lens, PairSet("certificate", "alone", (pair,)), self.sites)
            error = _gap(self._replay(alone), self.replays[:, :, :1], self.spread[:1])
            lengths = " and ".join(str(len(pair.base.ids)) for pair in self.pairs)
            text = f"replay of a prompt alone and with another, of {lengths} tokens"
            yield _proof("batch", error, self.tolerance.values, text)

    def _with_hooks(self) -> _Hooked:
        rows = []
        for number, pair in enumerate(self.pairs):
            with torch.set_grad_enabled(number == 0):
                rows.append(self._one_with_hooks(pair))

        def stacked(name: str) -> Tensor:
            return torch.stack([getattr(row, name) for row in rows], dim=-2)

        return _Hooked(
            stacked("untouched"),
            stacked("base"),
            stacked("read"),
            stacked("logits"),
            None if rows[0].output is None else stacked("output"),
            rows[0].gradient,
        )

    def _one_with_hooks(self, pair: Pair) -> _Hooked:
        """One prompt, without the axis n; all patches of all labels in one pass: row 0 of the
        batch is written back as it was, then come labels x patches."""
        lens, ids = self.lens, pair.base.ids
        labels, patches = self.patches.shape[:2]
        places = torch.tensor([pair.base.columns[label] for label in self.labels])
        columns = torch.cat([places[:1], places.repeat_interleave(patches)])
        deltas = torch.nn.functional.pad(self.patches.flatten(0, 1), (0, 0, 1, 0))
        deltas.requires_grad_(torch.is_grad_enabled())
        part = part_of(lens, self.site)
        read: list[Tensor] = []
        written: list[Tensor] = []

        def keep(where: list[Tensor]) -> Callable[[Tensor], None]:
            return lambda x: where.append(
                x.detach().reshape(len(columns), len(ids), -1).cpu().clone()
            )

        with ExitStack() as stack:
            stack.enter_context(adding(lens, self.site, columns, deltas))
            place, module = place_at(lens, self.site)
            stack.enter_context(place(module, keep(read)))
            projection = projection_of(lens, self.site)
            if projection is not None:
                stack.enter_context(on_output(projection, keep(written)))
            logits = last_logits(lens, ids, len(columns))
        gradient = torch.empty(0)
        if logits.requires_grad:
            first = logits[1::patches]
            difference = (first[:, pair.answer] - first[:, pair.target]).sum()
            gradient = torch.autograd.grad(difference, deltas)[0][1::patches]

        def at_labels(x: Tensor) -> tuple[Tensor, Tensor]:
            """Row 0 (l, width) and the others (l, m, width), at the columns of the labels."""
            rows = x[1:].unflatten(0, (labels, patches))
            return x[0, places], rows[torch.arange(labels), :, places]

        base, after_patch = (x[..., part] for x in at_labels(read[0]))
        output = None
        if written:
            before, after = at_labels(written[0].double())
            output = after - before[:, None]
        logits = logits.detach()
        patched = logits[1:].unflatten(0, (labels, patches))
        return _Hooked(logits[0], base, after_patch, patched, output, gradient)

    def _replay(self, captured: Capture) -> Tensor:
        """Logits (l, 1 + m, n, v) of no patch and of each patch."""
        count = len(captured.pairs)
        tail, rows = self.lens.map.tail, []
        with torch.no_grad():
            for which, site in enumerate(self.sites):
                replay = captured.at(site)
                patches = torch.nn.functional.pad(self.patches[which], (0, 0, 1, 0))
                delta = patches[:, None].expand(-1, count, -1).to(captured.base[site].device)
                hidden = torch.full((*delta.shape[:2], self.lens.map.d_model), math.nan)
                hidden = hidden.to(tail.head.weight)
                for piece in replay.pieces(len(delta), gradients=False):
                    hidden[piece.patches, piece.pairs] = piece.hidden(piece.of(delta)).to(hidden)
                rows.append(hidden)
            return tail.logits(torch.stack(rows)).cpu()

    def _replay_gradients(self, captured: Capture) -> tuple[Tensor, Tensor]:
        """For the first patch: logit(answer) - logit(target), (l, n), and its gradient in the patch
        of pair 0, (l, dim)."""
        differences = torch.full((len(self.sites), len(self.pairs)), math.nan).double()
        gradients = []
        for which, site in enumerate(self.sites):
            replay = captured.at(site)
            delta = self.patches[which, :1, None].expand(-1, len(self.pairs), -1)
            delta = delta.to(captured.base[site].device).clone().requires_grad_(True)
            total = torch.zeros_like(delta)
            for piece in replay.pieces():
                difference = piece.logit_diff(delta[:, piece.pairs.to(delta.device)])
                total += torch.autograd.grad(difference.sum(), delta)[0]
                differences[which, piece.pairs] = difference[0].detach().double().cpu()
            gradients.append(total[0, 0].cpu())
        return differences, torch.stack(gradients)
