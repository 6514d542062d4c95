"""The map of a whole model, put together from what its parts prove."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import ModelError, first_line
from ..hooks import evaluating, exclusive
from .recording import Recording, find_blocks, same
from .roles import find_roles
from .running import BlockRunner
from .tail import find_tail
from .values import ModelMap

_TOKENS = 6


def build_map(model: PreTrainedModel) -> ModelMap:
    """Maps and proves the parts of `model`, which is left as it was found.

    Raises `ModelError` where the basic structure (blocks, attention, unembedding) cannot be found;
    streams that fail are listed in `Block.missing`.
    """
    try:
        with exclusive(model), evaluating(model), torch.no_grad():
            return _build(model)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be mapped as a causal LM with a key-value cache: "
            f"{first_line(error)}"
        ) from error


def _build(model: PreTrainedModel) -> ModelMap:
    kind = type(model).__name__
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise ModelError(f"{kind} has no token embedding or unembedding: not a causal LM")
    elsewhere = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if elsewhere:
        raise ModelError(
            f"weights that are not in memory (offloaded by Accelerate): {len(elsewhere)}, such as "
            f"{elsewhere[0]}; load the model whole, over more devices or in a smaller dtype"
        )
    weight = embedding.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, weight.shape[0], (1, _TOKENS), generator=generator).to(weight.device)
    recording = Recording.of(model, ids)
    modules = find_blocks(model, recording)
    if not modules:
        raise ModelError(
            f"{kind}: no list of blocks in which each writes keys and values once was found; "
            "recurrent, encoder-decoder and cache-free models are not supported"
        )
    first, last = (recording.last_calls[id(modules[index])] for index in (0, -1))
    inner = next(
        parent
        for parent in reversed(first.parents)
        if "inputs_embeds" in inspect.signature(parent.forward).parameters
    )
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    runner = BlockRunner(model, modules, ids)
    blocks = tuple(
        find_roles(recording, module, runner.of(index), heads)
        for index, module in enumerate(modules)
    )
    tail = find_tail(model, recording, last, head)
    accepts = "position_ids" in inspect.signature(inner.forward).parameters
    return ModelMap(
        inner=inner,
        blocks=blocks,
        tail=tail,
        d_model=first.x.shape[-1],
        accepts_positions=accepts,
        blocks_return_tensor=first.plain,
        pads=_pads(model, ids, recording.logits, accepts),
        cached=tuple(recording.cached[index] for index in range(len(modules))),
        names={
            "blocks": recording.names[id(modules[0])].rsplit(".", 1)[0],
            "unembedding": tail.head.name,
        },
    )


def _pads(model: nn.Module, ids: Tensor, logits: Tensor, accepts_positions: bool) -> bool:
    """Whether padding on the left changes no logit."""
    pad = ids.new_zeros(1, 2)
    mask = torch.cat([pad, torch.ones_like(ids)], dim=1)
    arguments = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if accepts_positions else {}
    padded = model(
        input_ids=torch.cat([pad, ids], dim=1), attention_mask=mask, use_cache=False, **arguments
    )
    tolerance = 1e-8 if logits.dtype == torch.float64 else 1e-2
    return same(padded.logits[:, 2:], logits, tolerance)
