"""What a site is called elsewhere, and which site another tool's name is.

A name that is not that of one of our own hooks is proven: the model runs on a few tokens, and the
tensor that the name means must be that of a site. Where it is not, as with pyvene's
`mlp_activation` on a gated MLP, it is refused with what it is instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import SiteError
from ..core.site import EXPERT, STREAMS, Site
from ..engine.buckets import place_of
from ..model.hooks import Place, exclusive, on_input, on_output
from ..model.lens import LensModel
from ..model.mapping.ways import Within
from .foreign import Name

_HOOK = re.compile(r"blocks\.(\d{1,6})\.([a-z0-9_.]+?)(?:\.(\d{1,6}))?")
_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
    "mlp.hook_post": "mlp_act",
    "mlp.out.hook_in": "mlp_act",
    "attn.hook_z": "head_z",
    "attn.hook_q": "attn_q",
    "attn.hook_k": "attn_k",
    "attn.hook_v": "attn_v",
}
"""TransformerLens' hooks, those of `HookedTransformer` and of its bridge, whatever the model."""

_BESIDE_NORM = ("hook_attn_out", "hook_mlp_out")
_PYVENE = re.compile(r"layer\.(\d{1,6})\.comp\.(\w+)")
_NNTERP = re.compile(r"(layers|mlps|attentions)_(input|output)\[(\d{1,6})\]")
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation")
_STEERED = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
_COLUMNS = 6

MIDDLE = (
    "the values are those of the stream, but what a hook writes there only the MLP reads: the "
    "stream goes past it"
)
"""Of `resid_mid`, which no module takes in or gives out alone."""


@dataclass(frozen=True, order=True)
class Spot:
    """A site without its token: `L18.mlp_act`."""

    layer: int
    stream: str
    head: int | None = None

    def at(self, label: str) -> Site:
        return Site(self.layer, self.stream, label, self.head)

    def __str__(self) -> str:
        return str(self.at("_")).removesuffix("@_")


@dataclass(frozen=True)
class Spelling:
    """What a site is called in a tool: `name`, or None where the tool has no such tensor, and what
    differs there (`note`, empty where it is the same tensor)."""

    tool: str
    name: str | None
    note: str = ""


def site_named(text: str, lens: LensModel | None = None) -> Site:
    """A site in our own spelling, or in that of TransformerLens, pyvene, nnterp, or as a path of
    modules, with a label behind an @:

    >>> site_named("L18.mlp_act@S2") == site_named("blocks.18.mlp.hook_post@S2")
    True
    >>> site_named("model.layers.18.mlp.down_proj.input@S2", lens)
    Site(layer=18, stream='mlp_act', label='S2', head=None)

    Raises `SiteError` for a name that is no site's, and one that needs the model where no `lens`
    is given.
    """
    if is_ours(text):
        return Site.parse(text)
    place, _, label = text.strip().rpartition("@")
    return spot_of(_guessed(place), lens).at(label)


def is_ours(text: str) -> bool:
    """Whether a site is spelt as here, well or badly."""
    place, at, _ = text.strip().rpartition("@")
    return not at or re.match(r"L\d+\.", place) is not None


def _guessed(text: str) -> Name:
    """The tool in whose manner a name is spelt."""
    if _HOOK.fullmatch(text):
        return Name("TransformerLens", text)
    if _NNTERP.fullmatch(text):
        return Name("nnterp", text)
    if _PYVENE.fullmatch(text):
        return Name("pyvene", text)
    return Name("module path", text)


def spot_of(name: Name, lens: LensModel | None) -> Spot:
    """The site that a tool's name means in this model. Raises `SiteError` where it means none."""
    find = {
        "TransformerLens": _of_hook,
        "nnterp": _of_nnterp,
        "pyvene": _of_pyvene,
        "module path": _of_path,
        "block output": lambda text, _: Spot(int(text), "resid_post"),
        "steering-vectors": _of_steering,
    }
    if name.tool not in find:
        raise SiteError(f"{name}: where that is has to be said with --site")
    spot = find[name.tool](name.text, lens)
    if lens is not None:
        lens.map.block(spot.at("_"))
    return spot


def _of_hook(text: str, lens: LensModel | None) -> Spot:
    match = _HOOK.fullmatch(text)
    if match is None or match.group(2) not in _HOOKS:
        known = ", ".join(f"blocks.L.{hook}" for hook in _HOOKS)
        raise SiteError(f"TransformerLens' {text} is no site here: one of {known}")
    layer, hook, head = int(match.group(1)), match.group(2), match.group(3)
    stream = _HOOKS[hook]
    spot = Spot(layer, stream, None if head is None else int(head))
    if lens is not None and hook in _BESIDE_NORM and _normed(lens, spot):
        raise SiteError(
            f"TransformerLens' {text} is behind the norm that follows in {lens.id}; {spot} is "
            "before it: another tensor"
        )
    return spot


def _normed(lens: LensModel, spot: Spot) -> bool:
    """Whether a norm stands between what a branch writes and the residual stream."""
    block = lens.map.block(spot.at("_"))
    return isinstance(block.entries[spot.stream], Within)


def _of_nnterp(text: str, lens: LensModel | None) -> Spot:
    match = _NNTERP.fullmatch(text)
    if match is None:
        raise SiteError(f"'{text}' is no name of nnterp")
    what, end, layer = match.group(1), match.group(2), int(match.group(3))
    if what == "layers":
        return Spot(layer, "resid_post" if end == "output" else "resid_pre")
    model = _needed(lens, text)
    stream = "mlp_act" if what == "mlps" else "head_z"
    return _proven(model, _branch(model, layer, stream), end, text, layer)


def _of_steering(text: str, lens: LensModel | None) -> Spot:
    layer, _, kind = text.partition(" ")
    if kind not in _STEERED:
        raise SiteError(f"steering-vectors' layer_type '{kind}' is no site: {', '.join(_STEERED)}")
    if kind == "decoder_block":
        return Spot(int(layer), "resid_post")
    model = _needed(lens, text)
    stream = "mlp_act" if kind == "mlp" else "head_z"
    return _proven(model, _branch(model, int(layer), stream), "output", text, int(layer))


def _of_pyvene(text: str, lens: LensModel | None) -> Spot:
    match = _PYVENE.fullmatch(text)
    if match is None:
        raise SiteError(f"'{text}' is no place of pyvene")
    layer, component = int(match.group(1)), match.group(2)
    certain = {
        "block_input": "resid_pre", "block_output": "resid_post",
        "attention_value_output": "head_z", "head_attention_value_output": "head_z",
    }  # fmt: skip
    if component in certain:
        return Spot(layer, certain[component])
    model = _needed(lens, text)
    if component in ("mlp_output", "mlp_input"):
        end = component.removeprefix("mlp_")
        return _proven(model, _branch(model, layer, "mlp_out"), end, text, layer)
    if component in ("attention_output", "attention_input"):
        end = component.removeprefix("attention_")
        return _proven(model, _branch(model, layer, "head_z"), end, text, layer)
    if component == "mlp_activation":
        return _proven(model, _activation(model, layer), "output", text, layer)
    raise SiteError(f"pyvene's {component} is no site here: one of {', '.join(STREAMS)}")


def _needed(lens: LensModel | None, text: str) -> LensModel:
    if lens is None:
        raise SiteError(f"which site {text} is depends on the model: name one")
    return lens


def _branch(lens: LensModel, layer: int, stream: str) -> nn.Module:
    """The part of a block that holds its MLP's or its attention's output projection."""
    spot = Spot(layer, stream).at("_")
    block = lens.map.block(spot)
    projection = block.projection(stream)
    for child in block.module.children():
        if any(module is projection for module in child.modules()):
            return child
    return projection


def _activation(lens: LensModel, layer: int) -> nn.Module:
    branch = _branch(lens, layer, "mlp_act")
    for name in _ACTIVATIONS:
        child = getattr(branch, name, None)
        if isinstance(child, nn.Module):
            return child
    raise SiteError(f"block {layer} of {lens.id} has no activation function that is a module")


def _of_path(text: str, lens: LensModel | None) -> Spot:
    model = _needed(lens, text)
    path, end = _path(text)
    module = _module(model, path, text)
    layer = next(
        (
            number
            for number, block in enumerate(model.map.blocks)
            if any(inside is module for inside in block.module.modules())
        ),
        None,
    )
    if layer is None:
        raise SiteError(f"{text} is in no block of {model.id}")
    return _proven(model, module, end, text, layer)


def _path(text: str) -> tuple[str, str]:
    """`model.layers[18].mlp.down_proj.input` as a path with dots and `input` or `output`."""
    bare = re.sub(r"(\[0\])+$", "", text.strip())
    path, _, end = re.sub(r"\[(\d+)\]", r".\1", bare).rpartition(".")
    if end not in ("input", "output") or not path:
        raise SiteError(
            f"'{text[:80]}' is no site: L18.mlp_act@S2, blocks.18.mlp.hook_post@S2, or a path of "
            "modules that ends with .input or .output"
        )
    return path, end


def _module(lens: LensModel, path: str, text: str) -> nn.Module:
    """The module at a path, also one with the name of the model before it (nnsight's `model.`) or
    without what stands before the blocks."""
    modules = dict(lens.model.named_modules())
    _, _, behind = path.partition(".")
    for exact in (path, behind):
        if exact and exact in modules:
            return modules[exact]
    ends = [name for name in modules if name.endswith(f".{path}")]
    if len(ends) != 1:
        raise SiteError(f"'{text}': {lens.id} has {len(ends) or 'no'} modules there")
    return modules[ends[0]]


def _spots(lens: LensModel, layer: int) -> Iterator[tuple[Spot, Place, nn.Module]]:
    block = lens.map.blocks[layer]
    for stream in STREAMS:
        if stream in block.entries and not (stream in block.projected and _is_fused(lens, layer)):
            spot = Spot(layer, stream)
            yield (spot, *place_of(lens.map, spot.at("_")))


def _is_fused(lens: LensModel, layer: int) -> bool:
    """Whether queries, keys and values come out of one module, each a part of its tensor."""
    streams = lens.map.blocks[layer].projected
    modules = {place_of(lens.map, Spot(layer, stream).at("_"))[1] for stream in streams}
    return len(modules) < len(streams)


def _proven(lens: LensModel, module: nn.Module, end: str, text: str, layer: int) -> Spot:
    """The site of this block whose tensor is what goes into `module` or comes out of it."""
    place: Place = on_input if end == "input" else on_output
    sites = list(_spots(lens, layer))
    for spot, hook, known in sites:
        if known is module and hook is place:
            return spot
    wanted, found = _watched(lens, place, module, sites)
    if wanted is None:
        raise SiteError(f"{text}: the model does not run it in a pass")
    same = [spot for spot, x in found.items() if _equal(x, wanted)]
    if same:
        return same[0]
    alike = {spot: _cosine(x, wanted) for spot, x in found.items() if x.shape == wanted.shape}
    if not alike:
        raise SiteError(f"{text} is no site of {lens.id}: none is {wanted.shape[-1]} wide there")
    nearest = max(alike, key=lambda spot: alike[spot])
    raise SiteError(
        f"{text} is no site of {lens.id}: {nearest} is as wide and another tensor (cosine "
        f"{alike[nearest]:.2f} on {_COLUMNS} tokens): a subspace from there is none here"
    )


def _watched(
    lens: LensModel, place: Place, module: nn.Module, sites: list[tuple[Spot, Place, nn.Module]]
) -> tuple[Tensor | None, dict[Spot, Tensor]]:
    """What `place` sees of the module, and what stands at each site, (columns, width)."""
    seen: dict[Spot | None, Tensor] = {}

    def keep(spot: Spot | None):
        def see(x: Tensor) -> None:
            seen[spot] = x.detach().reshape(-1, x.shape[-1]).double().cpu()

        return see

    size = lens.map.tail.head.weight.shape[0]
    ids = torch.arange(1, _COLUMNS + 1, device=lens.device)[None] % size
    with exclusive(lens.model), torch.no_grad(), ExitStack() as stack:
        stack.enter_context(place(module, keep(None)))
        for spot, hook, known in sites:
            stack.enter_context(hook(known, keep(spot)))
        lens.model(input_ids=ids, use_cache=False)
    return seen.pop(None, None), {spot: x for spot, x in seen.items() if spot is not None}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-30))


_BY_MODULE = ("module path", "nnsight", "nnterp", "pyvene")


def spellings(lens: LensModel, site: Site) -> tuple[Spelling, ...]:
    """What a site of this model is called in TransformerLens, nnsight, nnterp and pyvene and as a
    path of modules, each with what differs there.

    >>> for spelling in spellings(lens, Site.parse("L18.mlp_act@S2")): print(spelling)
    """
    spot = Spot(site.layer, site.stream, site.head)
    hook, module = place_of(lens.map, site)
    if site.stream == EXPERT:
        note = "it stands in no module's input or output"
        return tuple(Spelling(tool, None, note) for tool in ("TransformerLens", *_BY_MODULE))
    end = "input" if hook is on_input else "output"
    path = next(name for name, each in lens.model.named_modules() if each is module)
    indexed = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)
    part = "" if site.head is None else f"the columns of head {site.head}"
    part = MIDDLE if site.stream == "resid_mid" else part
    whole = f"{indexed}.{end}"
    if site.stream in lens.map.block(site).projected and _is_fused(lens, site.layer):
        note = f"some columns of {path}.{end}"
        others = (Spelling(tool, None, note) for tool in _BY_MODULE)
        return (_in_transformer_lens(lens, spot), *others)
    first = "" if hook is on_input or _gives_tensor(lens, site) else "[0]"
    return (
        _in_transformer_lens(lens, spot),
        Spelling("module path", f"{path}.{end}", part),
        Spelling("nnsight", f"model.{whole}{first}", part),
        Spelling("nnterp", *_in_nnterp(lens, spot)),
        Spelling("pyvene", *_in_pyvene(lens, spot, whole)),
    )


def _gives_tensor(lens: LensModel, site: Site) -> bool:
    return site.stream != "resid_post" or lens.map.blocks_return_tensor


def _in_transformer_lens(lens: LensModel, spot: Spot) -> Spelling:
    hook = next(hook for hook, stream in _HOOKS.items() if stream == spot.stream)
    name, notes = f"blocks.{spot.layer}.{hook}", []
    if spot.head is not None:
        notes.append(f"index {spot.head} of its head dimension")
    if hook in _BESIDE_NORM and _normed(lens, spot):
        part = "attn" if spot.stream == "attn_out" else "mlp"
        name = f"blocks.{spot.layer}.{part}.hook_out"
        notes.append(f"{hook} is behind the norm that follows: another tensor")
    inside = ("mlp_act", "head_z", "attn_q", "attn_k", "attn_v")
    if spot.stream not in inside and centred_elsewhere(lens):
        notes.append("in compatibility mode its mean over the dimensions is taken out")
    if spot.stream == "resid_mid":
        notes.append(f"in a TransformerBridge {MIDDLE}")
    return Spelling("TransformerLens", name, "; ".join(notes))


def centred_elsewhere(lens: LensModel) -> bool:
    """Whether TransformerLens' compatibility mode centres what is written to the residual stream:
    where a LayerNorm reads it."""
    return any(isinstance(reader.norm, nn.LayerNorm) for reader in lens.map.blocks[0].readers)


def _means(lens: LensModel, name: Name, spot: Spot) -> bool:
    try:
        return spot_of(name, lens) == spot
    except SiteError:
        return False


def _in_nnterp(lens: LensModel, spot: Spot) -> tuple[str | None, str]:
    names = {
        "resid_pre": "layers_input", "resid_post": "layers_output", "mlp_out": "mlps_output",
        "attn_out": "attentions_output",
    }  # fmt: skip
    name = f"{names.get(spot.stream)}[{spot.layer}]"
    if spot.stream in names and _means(lens, Name("nnterp", name), spot):
        return name, ""
    return None, "no accessor gives this tensor"


def _in_pyvene(lens: LensModel, spot: Spot, whole: str) -> tuple[str, str]:
    names = {
        "resid_pre": "block_input", "resid_post": "block_output", "mlp_out": "mlp_output",
        "attn_out": "attention_output", "mlp_act": "mlp_activation",
        "head_z": "attention_value_output",
    }  # fmt: skip
    name = names.get(spot.stream)
    if spot.head is not None and spot.stream == "head_z":
        note = f'layer {spot.layer}, unit "h.pos", head {spot.head}'
        return "head_attention_value_output", note
    if name and _means(lens, Name("pyvene", f"layer.{spot.layer}.comp.{name}"), spot):
        return name, f"layer {spot.layer}"
    if spot.stream == "resid_mid":
        return whole, MIDDLE
    return whole, f"{name} is another tensor here" if name else ""
