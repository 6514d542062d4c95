"""Dictionaries: folders of SAELens, `ae.pt` of dictionary_learning, and their weights alone.

A latent is read by a column of `W_enc` (d, d_sae) and written by a row of `W_dec` (d_sae, d). In
dictionary_learning the decoder is a `Linear`: its `decoder.weight` is (d, d_sae), the transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import SubspaceError
from ..engine.patches import SetLatent
from .containers import stored
from .foreign import Foreign, Name, Part
from .registry import Source, reader

WEIGHTS = "sae_weights.safetensors"


@reader("SAELens")
def saelens_folder(source: Source) -> Foreign | None:
    """A folder that `SAE.save_model` wrote, of version 6 or before."""
    weights = source.path / WEIGHTS
    config = source.config("cfg.json")
    if source.container != "folder" or not config or not weights.is_file():
        return None
    shapes = Source(weights).shapes
    meta = {**config, **(config.get("metadata") or {})}
    where = meta.get("hook_name") or meta.get("hook_point")
    written = meta.get("hook_name_out")
    kind = str(config.get("architecture") or _architecture(shapes))
    if config.get("activation_fn_str") == "topk" or config.get("activation_fn") == "topk":
        kind = "topk"
    notes = _notes(config, meta)
    centred = bool((meta.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    parts = _parts(
        weights, shapes, read_at=_name(where, meta), write_at=_name(written, meta), kind=kind,
        centred=centred, head=meta.get("hook_head_index"), less_b_dec=_less_b_dec(config, centred),
    )  # fmt: skip
    return Foreign(
        tool="SAELens",
        kind=f"{kind} sparse autoencoder, {shapes['W_dec'][0]} latents",
        parts=parts,
        default="W_dec",
        origin=str(source.path),
        path=source.path,
        model=meta.get("model_name"),
        bos=meta.get("prepend_bos"),
        notes=notes,
    )


@reader("SAE weights")
def weights_alone(source: Source) -> Foreign | None:
    """`sae_weights.safetensors` without its folder, or a torch file with the same names."""
    if not {"W_enc", "W_dec", "b_dec"} <= source.names:
        return None
    shapes = source.shapes
    parts = _parts(source.path, shapes, kind=_architecture(shapes), tensors=source)
    return Foreign(
        tool="SAELens",
        kind=f"{_architecture(shapes)} sparse autoencoder, {shapes['W_dec'][0]} latents",
        parts=parts,
        default="W_dec",
        origin=str(source.path),
        path=source.path,
        notes=("its cfg.json is not beside it: model, site and BOS are not known",),
    )


@reader("dictionary_learning")
def dictionary(source: Source) -> Foreign | None:
    """`ae.pt`, or the folder with it and `config.json`."""
    file, config = source, source.config("config.json")
    if source.container == "folder":
        if not (source.path / "ae.pt").is_file():
            return None
        file = Source(source.path / "ae.pt")
    if not {"encoder.weight", "decoder.weight"} <= file.names:
        return None
    shapes = file.shapes
    latents, width = shapes["encoder.weight"]
    if shapes["decoder.weight"] != (width, latents):
        raise SubspaceError(
            f"{file.path}: an encoder {shapes['encoder.weight']} and a decoder "
            f"{shapes['decoder.weight']} belong to no dictionary"
        )
    trainer = config.get("trainer") or {}
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    tensors = file.tensors

    def decoder(rows: Sequence[int]) -> Tensor:
        return tensors["decoder.weight"][:, list(rows)].double()

    def encoder(rows: Sequence[int]) -> Tensor:
        return tensors["encoder.weight"][list(rows)].T.double()

    numbers = {name: _lazy(tensors, name) for name in tensors if name != "decoder.weight"}

    def latent(row: int) -> SetLatent:
        return SetLatent(
            encoder([row])[:, 0],
            decoder([row])[:, 0],
            bias=float(tensors["encoder.bias"][row]),
            centre=tensors["bias"].detach(),
        )

    plain = set(tensors) == {"bias", "encoder.weight", "encoder.bias", "decoder.weight"}
    place = Name("dictionary_learning", f"layer {layer}, {module}") if module else None
    notes = ("a latent is a column of decoder.weight (d, latents)",)
    if place is not None:
        notes += ("the name of its submodule is free text: say with --site where it belongs",)
    shared: dict[str, Any] = dict(
        latents=latents, operation="latent", numbers=numbers, latent=latent if plain else None
    )
    return Foreign(
        tool="dictionary_learning",
        kind=f"{'gated ' if 'r_mag' in shapes else ''}dictionary, {latents} latents",
        parts={
            "decoder": Part(shape=(width, latents), columns=decoder, **shared),
            "encoder": Part(shape=(width, latents), columns=encoder, **shared),
        },
        default="decoder",
        origin=str(source.path),
        path=file.path,
        model=trainer.get("lm_name"),
        notes=notes if place is None else (*notes, str(place)),
    )


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "threshold" in shapes:
        return "jumprelu"
    return "gated" if "r_mag" in shapes else "standard"


def _name(hook: str | None, meta: Mapping[str, Any]) -> Name | None:
    if not hook:
        return None
    return Name("TransformerLens" if hook.startswith("blocks.") else "module path", hook)


def _less_b_dec(config: Mapping[str, Any], centred: bool) -> bool | None:
    """Whether b_dec is taken from what the encoder reads; None where that, or that it reads raw
    activations through a ReLU, is not said."""
    raw = config.get("normalize_activations") in (None, False, "none") and not centred
    plain = config.get("activation_fn", config.get("activation_fn_str")) in (None, "relu")
    return config.get("apply_b_dec_to_input") if raw and plain else None


def _notes(config: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if config.get("normalize_activations") not in (None, False, "none"):
        notes.append(
            f"activations are normalised ({config['normalize_activations']}) before it reads them: "
            "a direction is the same, its latents' values are not those of raw activations"
        )
    if meta.get("prepend_bos") is True:
        notes.append("it was trained on prompts that begin with a BOS token")
    return tuple(notes)


def _parts(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    kind: str,
    read_at: Name | None = None,
    write_at: Name | None = None,
    centred: bool = False,
    head: int | None = None,
    tensors: Source | None = None,
    less_b_dec: bool | None = None,
) -> dict[str, Part]:
    if not {"W_enc", "W_dec"} <= shapes.keys():
        raise SubspaceError(f"{path}: no W_enc and W_dec in it; it holds {', '.join(shapes)}")
    (read, latents), (rows, written) = shapes["W_enc"], shapes["W_dec"]
    if rows != latents:
        raise SubspaceError(
            f"{path}: W_enc {shapes['W_enc']} and W_dec {shapes['W_dec']} belong to no dictionary"
        )
    if head is not None and read_at is not None:
        read_at = Name(read_at.tool, f"{read_at.text}.{head}")
    crosses = "transcoder" in kind or write_at is not None or read != written
    in_memory = tensors is not None and tensors.container != "safetensors"

    def decoder(chosen: Sequence[int]) -> Tensor:
        if in_memory and tensors is not None:
            return tensors.tensors["W_dec"][list(chosen)].T.double()
        return torch.stack([stored(path, "W_dec", rows=row) for row in chosen], dim=1).double()

    def encoder(chosen: Sequence[int]) -> Tensor:
        if in_memory and tensors is not None:
            return tensors.tensors["W_enc"][:, list(chosen)].double()
        columns = [stored(path, "W_enc", columns=column) for column in chosen]
        return torch.stack(columns, dim=1).double()

    numbers = {
        name: _lazy(tensors.tensors, name)
        if in_memory and tensors is not None
        else _on_disk(path, name)
        for name in shapes
    }

    def latent(row: int) -> SetLatent:
        threshold = float(numbers["threshold"]()[row]) if "threshold" in numbers else 0.0
        return SetLatent(
            encoder([row])[:, 0],
            decoder([row])[:, 0],
            bias=float(numbers["b_enc"]()[row]),
            threshold=max(0.0, threshold),
            centre=numbers["b_dec"]() if less_b_dec else None,
        )

    alone = less_b_dec is not None and kind in ("standard", "jumprelu") and not crosses
    shared: dict[str, Any] = dict(
        latents=latents, operation="latent", centred=centred, numbers=numbers,
        latent=latent if alone else None,
    )  # fmt: skip
    reads = Part(shape=(read, latents), columns=encoder, place=read_at, **shared)
    if not crosses:
        return {
            "W_dec": Part(shape=(written, latents), columns=decoder, place=read_at, **shared),
            "W_enc": reads,
        }
    refused = None
    if write_at is None:
        refused = (
            f"{kind}: it reads at {read_at or 'one place'} and writes at another, which it does "
            "not name; --key W_enc is what it reads, or save the rows of W_dec as a plain array"
        )
    return {
        "W_dec": Part(
            shape=(written, latents), columns=decoder, place=write_at, refused=refused,
            notes=(f"a transcoder: it reads at {read_at} and writes at {write_at}",), **shared,
        ),
        "W_enc": reads,
    }  # fmt: skip


def _lazy(tensors: Mapping[str, Any], name: str) -> Callable[[], Tensor]:
    return lambda: tensors[name].detach()


def _on_disk(path: Path, name: str) -> Callable[[], Tensor]:
    return lambda: stored(path, name)
