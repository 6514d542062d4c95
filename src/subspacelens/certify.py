"""What a site must prove before it is used.

Hooks that silently miss are the field's loudest complaint, so nothing here is taken on trust: a few
short prompts of random tokens run through the untouched model with plain hooks, and through
`capture` and `Replay`, and both must agree. A proof passes when its measured error is within its
tolerance. Certificates are kept until a weight or a hook of the model changes.
"""

from __future__ import annotations

import html
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .capture import Capture, capture
from .errors import LensError, ModelError, SiteError, TaskError
from .geometry import Split
from .hooks import on_input, on_output
from .model import LensModel
from .progress import track
from .replay import Replay
from .site import STREAMS, Site
from .tasks.pairset import Pair, PairSet, Prompt


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

_LENGTHS = ((8, 4), (10, 6))
"""Length and inner column of the probing prompts: close enough to share a padded batch."""
_SCALES = (1.0, 10.0)
"""Sizes of the random changes, in units of the natural difference between two prompts."""
_SEED = 20231117


@dataclass(frozen=True)
class Proof:
    """One measurement: it passed if `error` is at most `tolerance`. `text` says what was compared
    with what."""

    name: str
    passed: bool
    error: float
    tolerance: float
    text: str


@dataclass(frozen=True)
class Certificate:
    """The proofs of one site, in the order in which they were made: where a hook fires, the kernel
    of the writer matrix, what hooks do, replay, batches. Nothing is tried past a failure, but that
    the model is left as it was found."""

    site: Site
    proofs: tuple[Proof, ...] = field(repr=False)

    @property
    def passed(self) -> bool:
        return all(proof.passed for proof in self.proofs)

    @property
    def failures(self) -> tuple[Proof, ...]:
        return tuple(proof for proof in self.proofs if not proof.passed)

    def __repr__(self) -> str:
        if self.passed:
            return f"Certificate({self.site}: all {len(self.proofs)} proofs passed)"
        failed = ", ".join(proof.name for proof in self.failures)
        return f"Certificate({self.site}: FAILED {failed})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if proof.passed else '✗'}</td><th>{html.escape(proof.name)}</th>"
            f"<td>{proof.error:.1e}</td><td>≤ {proof.tolerance:.0e}</td>"
            f"<td>{html.escape(proof.text)}</td></tr>"
            for proof in self.proofs
        )
        return f"<b>{html.escape(repr(self))}</b><table>{rows}</table>"


@dataclass(frozen=True)
class DoctorRow:
    """A site and its certificate, or the reason why the model has no such site."""

    site: Site
    certificate: Certificate | None
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.certificate is not None and self.certificate.passed


def certify(lens: LensModel, site: Site, *, pairs: PairSet | None = None) -> Certificate:
    """The certificate of a site: from two short prompts of random tokens, with an inner label and
    END, for whatever label is asked; or from the shortest and the longest base prompt of `pairs`,
    at the site's label and at END. Made once per model, layer, stream and head.

    Raises `SiteError` for a site that the architecture lacks, `ModelError` for a model in training
    mode. A failed proof does not raise: see `require`.
    """
    lens.map.block(site)
    if lens.model.training:
        raise ModelError("the model is in training mode: call model.eval() first")
    kept = _kept(lens)
    asked = None if pairs is None else (pairs.sha256, site.label)
    key = (site.layer, site.stream, site.head, asked)
    if key not in kept:
        with torch.inference_mode(False), torch.enable_grad():
            kept[key] = Certificate(site, tuple(_Examination(lens, site, pairs).proofs()))
    return replace(kept[key], site=site)


def require(lens: LensModel, site: Site, *, pairs: PairSet | None = None) -> Certificate:
    """The certificate of a site that passed every proof. Raises `SiteError`, in one line that names
    the first proof that failed and by how much, for any other."""
    certificate = certify(lens, site, pairs=pairs)
    if not certificate.passed:
        proof = certificate.failures[0]
        raise SiteError(
            f"site {site} failed the proof '{proof.name}': {proof.text} "
            f"(error {proof.error:.2g}, at most {proof.tolerance:.2g} allowed)"
        )
    return certificate


def centred(lens: LensModel) -> bool:
    """Whether the model reads its residual stream only after subtracting the mean over dimensions,
    as LayerNorm does; then what W writes counts as (I - 11ᵀ/d) W (arXiv 2311.17030).

    Proven on the running model: c·1 added to what enters the first block changes no logit, at an
    inner and at the last column, where a random vector of that length does.
    """
    kept = _kept(lens)
    if "centred" not in kept:
        with torch.inference_mode(False), torch.no_grad():
            kept["centred"] = _is_centred(lens)
    return kept["centred"]


def doctor_rows(lens: LensModel, sites: Sequence[Site] | None = None) -> list[DoctorRow]:
    """Certificates of `sites`, or else of every stream of the first, a middle and the last layer.
    Streams that the architecture lacks have a reason instead."""
    blocks = lens.map.blocks
    if sites is None:
        layers = sorted({0, len(blocks) // 2, len(blocks) - 1})
        sites = [Site(layer, stream, "END") for layer in layers for stream in STREAMS]
    rows = []
    for site in track(sites, "certificates"):
        try:
            lens.map.block(site)
        except SiteError as error:
            missing = blocks[site.layer].missing if site.layer < len(blocks) else {}
            rows.append(DoctorRow(site, None, missing.get(site.stream) or str(error)))
        else:
            rows.append(DoctorRow(site, certify(lens, site)))
    return rows


# What is kept, and for how long.

_certificates: WeakKeyDictionary[LensModel, tuple[tuple, dict]] = WeakKeyDictionary()


def _kept(lens: LensModel) -> dict:
    """What was proven of the model; nothing, once a weight, a hook or a forward was changed."""
    state = tuple(_state(lens.model))
    known = _certificates.get(lens)
    if known is None or known[0] != state:
        known = (state, {})
        _certificates[lens] = known
    return known[1]


def _state(model: nn.Module) -> Iterator[tuple[str, tuple]]:
    """For every module and parameter its name and whatever tells that it was changed: hooks,
    replaced forwards, the version and place of the data. No weight is read."""
    for name, module in model.named_modules():
        kinds: tuple[Mapping, ...] = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        forward = module.__dict__.get("forward")
        yield name or "the model", (*map(tuple, kinds), forward and id(forward), module.training)
    for name, parameter in model.named_parameters():
        version = -1 if parameter.is_inference() else parameter._version
        yield name, (version, parameter.data_ptr(), parameter.requires_grad, parameter.grad is None)


# The prompts.


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _words(lens: LensModel) -> list[int]:
    """Token ids that are not special."""
    size = lens.map.tail.head.weight.shape[0]
    config = lens.model.config.get_text_config(decoder=True)
    special: set[int] = set()
    if lens.tokenizer is not None:
        size = min(size, len(lens.tokenizer))
        special.update(lens.tokenizer.all_special_ids)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name, None)
        special.update(ids if isinstance(ids, list) else () if ids is None else (ids,))
    words = [token for token in range(size) if token not in special]
    if len(words) < 2:
        raise ModelError("the vocabulary has fewer than two tokens that are not special")
    return words


def probing_pairs(lens: LensModel) -> PairSet:
    """Two pairs of random tokens, of different lengths, with a label X inside and END."""
    words = _words(lens)
    rng = random.Random(_SEED)
    pairs = []
    for length, column in _LENGTHS:
        base, source = (
            Prompt("", tuple(rng.choices(words, k=length)), {"X": column, "END": length - 1})
            for _ in range(2)
        )
        answer, target = rng.sample(words, 2)
        pairs.append(Pair(base, source, answer, target))
    return PairSet("certificate", "random", tuple(pairs))


def _two_of(pairs: PairSet) -> PairSet:
    """The pairs with the shortest and the longest base prompt."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].base.ids))
    chosen = dict.fromkeys((order[0], order[-1]))
    return PairSet(pairs.name, pairs.split, tuple(pairs[i] for i in chosen))


# Plain hooks on the whole model: what everything else is compared with.


def _projection(lens: LensModel, site: Site) -> nn.Module | None:
    """The module that reads the site and writes to the residual stream, if that is linear."""
    block = lens.map.blocks[site.layer]
    linear = {"mlp_act": block.down_proj, "head_z": block.out_proj}.get(site.stream)
    return None if linear is None else linear.module


def _part(lens: LensModel, site: Site) -> slice:
    """The site's share of the tensor that its hook sees."""
    return lens.map.head_slice(site) if site.stream == "head_z" else slice(None)


@contextmanager
def _hook(lens: LensModel, site: Site, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `change` with what the model computes at a site."""
    block = lens.map.blocks[site.layer]
    if site.stream in ("resid_pre", "resid_post"):
        module = block.module
    elif site.stream == "resid_mid":
        module = block.mid_reader
    else:
        linear = block.down_proj if site.stream.startswith("mlp") else block.out_proj
        module = linear and linear.module
    assert module is not None
    read = site.stream in ("resid_pre", "resid_mid", "mlp_act", "head_z")
    with (on_input if read else on_output)(module, change):
        yield


@contextmanager
def _adding(lens: LensModel, site: Site, columns: Tensor, deltas: Tensor) -> Iterator[None]:
    """Adds `deltas[r]` (rows, dim) at column `columns[r]` of row r. A change of `resid_mid` is one
    of what enters the block, with what attention adds held at its value in row 0."""
    rows = torch.arange(len(columns))
    part = _part(lens, site)

    def add(x: Tensor) -> Tensor:
        new = x.reshape(len(columns), -1, x.shape[-1]).clone()
        new[rows, columns, part] += deltas.to(new)
        return new.reshape(x.shape)

    def hold(x: Tensor) -> Tensor:
        every = x.reshape(len(columns), -1, x.shape[-1])
        return every[:1].expand_as(every).reshape(x.shape)

    with ExitStack() as stack:
        if site.stream == "resid_mid":
            block = lens.map.blocks[site.layer]
            stack.enter_context(on_input(block.module, add))
            stack.enter_context(on_output(block.out_proj.module, hold))
        else:
            stack.enter_context(_hook(lens, site, add))
        yield


def _last_logits(lens: LensModel, ids: Sequence[int], rows: int = 1) -> Tensor:
    """Logits (rows, vocabulary) at the last token of the same prompt in every row, on the CPU."""
    tokens = torch.tensor([list(ids)] * rows, device=lens.device)
    output = lens.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return output.logits[:, -1].cpu()


@dataclass(frozen=True)
class _Watched:
    """A pass in which the site is only watched: the activations seen there, each (columns, dim),
    and when, among ("in", l) and ("out", l), the begin and the end of block l."""

    seen: list[Tensor]
    events: list

    @classmethod
    def of(cls, lens: LensModel, site: Site, ids: Sequence[int]) -> _Watched:
        seen, events = [], []

        def see(x: Tensor) -> None:
            seen.append(x.detach().reshape(len(ids), -1)[:, _part(lens, site)].cpu())
            events.append("site")

        def note(event: tuple[str, int]) -> Callable[[Tensor], None]:
            return lambda _: events.append(event)

        with ExitStack() as stack, torch.no_grad():
            # Hooks of one module run in the order of registration; the site's is the inner one.
            for layer, block in enumerate(lens.map.blocks):
                stack.enter_context(on_input(block.module, note(("in", layer))))
            stack.enter_context(_hook(lens, site, see))
            for layer, block in enumerate(lens.map.blocks):
                stack.enter_context(on_output(block.module, note(("out", layer))))
            _last_logits(lens, ids)
        return cls(seen, events)

    def misplaced(self, layer: int, blocks: int) -> tuple[int, str]:
        """How many events are not where they belong, and what is wrong in words."""
        expected = [(kind, number) for number in range(blocks) for kind in ("in", "out")]
        order = [event for event in self.events if event != "site"]
        if order != expected:
            wrong = sum(a != b for a, b in zip_longest(order, expected))
            return wrong, f"the {blocks} blocks of the map do not run once each and in its order"
        begin, end = self.events.index(("in", layer)), self.events.index(("out", layer))
        inside = self.events[begin:end].count("site")
        outside = self.events.count("site") - inside
        if (inside, outside) == (1, 0):
            return 0, f"seen once a pass, within block {layer}"
        text = f"seen {inside} times within block {layer} and {outside} times elsewhere in a pass"
        return abs(inside - 1) + outside, text


# The examination.


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


class _Examination:
    """All proofs of one site. At each label several patches are written: random ones of the sizes
    `_SCALES`, and, where the site has a writer matrix with a kernel, one inside the kernel."""

    clean: Tensor
    """Logits (n, v) of the base prompts, no hook anywhere."""
    spread: Tensor
    """Their standard deviation over the vocabulary, (n,)."""
    source: Tensor
    """Activations (l, dim) of the first source prompt."""
    patches: Tensor
    """(l, m, dim), the first ones those of `_SCALES`."""
    plain: _Hooked
    replays: Tensor
    """Logits (l, 1 + m, n, v) of no patch and of each patch."""

    def __init__(self, lens: LensModel, site: Site, pairs: PairSet | None) -> None:
        if lens.dtype not in TOLERANCES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in TOLERANCES)
            raise ModelError(f"no site can be certified in {lens.dtype}: load the model in {known}")
        if pairs is not None and site.label not in pairs.labels:
            raise TaskError(f"site {site}: the pairs have no label '{site.label}'")
        self.lens, self.site = lens, site
        self.pairs = probing_pairs(lens) if pairs is None else _two_of(pairs)
        self.labels = ("X", "END") if pairs is None else tuple(dict.fromkeys((site.label, "END")))
        self.sites = [replace(site, label=label) for label in self.labels]
        self.tolerance = TOLERANCES[lens.dtype]

    def proofs(self) -> Iterator[Proof]:
        before = dict(_state(self.lens.model))
        with torch.no_grad():
            self.clean = torch.cat([_last_logits(self.lens, pair.base.ids) for pair in self.pairs])
        self.spread = self.clean.double().std(dim=-1)
        steps: dict[str, Callable[[], Iterator[Proof]]] = {
            "hook fires": self.fires,
            "kernel": self.kernel,
            "hook identity": self.hooked,
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
        after = dict(_state(self.lens.model))
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        text = "hooks, forwards, modes and weights are those from before"
        if changed:
            text = f"hooks, forward, mode or weights of {min(changed)} are not those from before"
        yield _proof("left as found", len(changed), 0, text)

    def fires(self) -> Iterator[Proof]:
        """The site is seen once a pass, inside its block."""
        pair = self.pairs[0]
        watched = [_Watched.of(self.lens, self.site, p.ids) for p in (pair.base, pair.source)]
        count, text = watched[0].misplaced(self.site.layer, len(self.lens.map.blocks))
        if count == 0:
            base, source = (
                one.seen[0][[prompt.columns[label] for label in self.labels]].double()
                for one, prompt in zip(watched, (pair.base, pair.source), strict=True)
            )
            self.source = source
            natural = torch.maximum((source - base).norm(dim=-1), 0.01 * source.norm(dim=-1))
            self.size = natural / source.shape[-1] ** 0.5
        yield _proof("hook fires", count, 0, text)

    def kernel(self) -> Iterator[Proof]:
        """The projectors of the writer matrix; and the patches that will be written."""
        dim = self.lens.map.dim(self.site)
        x = torch.randn(dim, 1, generator=_generator(), dtype=torch.float64)
        kinds = [scale * x[:, 0] for scale in _SCALES]
        weight = self.lens.map.writer(self.site)
        if weight is not None:
            mean = centred(self.lens)
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
        allowed, random = self.tolerance.values, len(_SCALES)
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
            f"{_SCALES[-1]:.0f} times a natural change moves the logits by {effect:.2g} of their "
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

    def replayed(self) -> Iterator[Proof]:
        """Capture and replay against the full passes."""
        plain, allowed = self.plain, self.tolerance.values
        captured = capture(self.lens, self.pairs, self.sites, shifted=True)
        seen = [
            torch.cat([captured.base[site], captured.source[site][:1]]).cpu() for site in self.sites
        ]
        expected = torch.cat([plain.base.double(), self.source[:, None]], dim=1)
        error = _apart(torch.stack(seen), expected)
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
        part = _part(lens, self.site)
        read: list[Tensor] = []
        written: list[Tensor] = []

        def keep(where: list[Tensor]) -> Callable[[Tensor], None]:
            return lambda x: where.append(x.detach().reshape(len(columns), len(ids), -1).cpu())

        with ExitStack() as stack:
            stack.enter_context(_adding(lens, self.site, columns, deltas))
            stack.enter_context(_hook(lens, self.site, keep(read)))
            projection = _projection(lens, self.site)
            if projection is not None:
                stack.enter_context(on_output(projection, keep(written)))
            logits = _last_logits(lens, ids, len(columns))
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
        shape = (len(self.sites), 1 + self.patches.shape[1], count, self.clean.shape[-1])
        logits = torch.full(shape, math.nan, dtype=self.clean.dtype)
        with torch.no_grad():
            for which, site in enumerate(self.sites):
                replay = Replay(self.lens, captured, site)
                patches = torch.nn.functional.pad(self.patches[which], (0, 0, 1, 0))
                delta = patches[:, None].expand(-1, count, -1).to(captured.base[site].device)
                for unit in replay.units(len(delta), gradients=False):
                    piece = delta[unit.patches][:, unit.pairs.to(delta.device)]
                    logits[which, unit.patches, unit.pairs] = replay.logits(unit, piece).cpu()
        return logits

    def _replay_gradients(self, captured: Capture) -> tuple[Tensor, Tensor]:
        """For the first patch: logit(answer) - logit(target), (l, n), and its gradient in the patch
        of pair 0, (l, dim)."""
        differences = torch.full((len(self.sites), len(self.pairs)), math.nan).double()
        gradients = []
        for which, site in enumerate(self.sites):
            replay = Replay(self.lens, captured, site)
            delta = self.patches[which, :1, None].expand(-1, len(self.pairs), -1)
            delta = delta.to(captured.base[site].device).clone().requires_grad_(True)
            total = torch.zeros_like(delta)
            for unit in replay.units():
                difference = replay.logit_diff(unit, delta[:, unit.pairs.to(delta.device)])
                total += torch.autograd.grad(difference.sum(), delta)[0]
                differences[which, unit.pairs] = difference[0].detach().double().cpu()
            gradients.append(total[0, 0].cpu())
        return differences, torch.stack(gradients)


def _is_centred(lens: LensModel) -> bool:
    """Compares the effect of c·1 on the logits with that of a random vector of the same length."""
    site = Site(0, "resid_pre", "END")
    prompt = probing_pairs(lens)[0].base
    columns = torch.tensor([0, *(prompt.columns[label] for label in ("X", "X", "END", "END"))])
    residual = _Watched.of(lens, site, prompt.ids).seen[0].double()
    noise = torch.randn(lens.map.d_model, generator=_generator(), dtype=torch.float64)
    noise = noise / noise.square().mean().sqrt()
    both = [torch.ones_like(noise), noise]
    deltas = residual.square().mean().sqrt() * torch.stack([0 * noise, *both, *both])
    with _adding(lens, site, columns, deltas.to(lens.dtype)):
        logits = _last_logits(lens, prompt.ids, len(columns)).double()
    effect = (logits[1:] - logits[0]).norm(dim=-1)
    # Seen with LayerNorm: 5e-6 in float32, 0.01 in float16, 0.1 in bfloat16; with RMSNorm over 0.4.
    share = 0.2 if lens.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool((effect[0::2] <= share * effect[1::2]).all())
