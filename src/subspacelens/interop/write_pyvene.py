"""A subspace as a folder of pyvene: a low-rank rotated interchange."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrizations

from ..core.errors import SubspaceError
from ..core.files import write_atomically
from ..engine.buckets import place_of
from ..model.hooks import on_input
from .names import spellings
from .writing import Outgoing, writer

_KIND = "<class 'pyvene.models.interventions.LowRankRotatedSpaceIntervention'>"
_IMPORT = "import pyvene as pv\n\n"


class _Rotation(nn.Module):
    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width, k))


@writer("pyvene")
def write(outgoing: Outgoing, folder: Path) -> str:
    """`config.json` and the one `intkey_….bin`; the positions are given when it is called."""
    lens, site, basis = outgoing.lens, outgoing.site, outgoing.basis
    rotation = parametrizations.orthogonal(_Rotation(*basis.shape))
    rotation.weight = basis.detach().float()
    component = _component(outgoing)
    mapped = "." not in component
    width, k = basis.shape
    layer = site.layer if mapped else 0
    unit = "h.pos" if site.head is not None else "pos"
    flat = component.replace(".", "_")
    where = f"comp_{flat}_unit_{unit.replace('.', '_')}_nunit_1#0"
    key = f"layer_{layer}_{where}" if mapped else where
    state = {f"rotate_layer.{name}": value for name, value in rotation.state_dict().items()}
    if mapped:
        state |= dict.fromkeys(("embed_dim", "interchange_dim"), torch.tensor(width))
    config = {
        "representations": [[layer, component, unit, 1, k, *[None] * 9]],
        "intervention_types": [_KIND],
        "intervention_dimensions": [width],
        "intervention_constant_sources": [False],
        "sorted_keys": [key],
        "mode": "parallel",
        "model_type": str(type(lens.model)),
    }
    file = io.BytesIO()
    torch.save(state, file)
    write_atomically(folder / f"intkey_{key}.bin", file.getvalue())
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    if mapped:
        return f'{_IMPORT}patched = pv.IntervenableModel.load("{folder}", model)'
    return (
        f"import torch\n{_IMPORT}"
        f"intervention = pv.LowRankRotatedSpaceIntervention(embed_dim={width}, "
        f"low_rank_dimension={k})\n"
        f'intervention.load_state_dict(torch.load("{folder}/intkey_{key}.bin"), strict=False)\n'
        f'patched = pv.IntervenableModel(pv.IntervenableConfig([{{"component": "{component}", '
        '"intervention": intervention}]), model)'
    )


def _component(outgoing: Outgoing) -> str:
    """What pyvene calls the place: a component of its own, or a path of modules."""
    lens, site = outgoing.lens, outgoing.site
    names = {each.tool: each.name for each in spellings(lens, site)}
    if site.stream in ("resid_pre", "resid_post", "head_z"):
        return str(names["pyvene"])
    if names["module path"] is None or site.head is not None:
        raise SubspaceError(f"{site} is a part of a tensor of which pyvene patches the whole")
    hook, module = place_of(lens.map, site)
    path = next(name for name, each in lens.model.named_modules() if each is module)
    parts = path.split(".")
    indexed = parts[0] + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in parts[1:])
    return f"{indexed}.{'input' if hook is on_input else 'output'}"
