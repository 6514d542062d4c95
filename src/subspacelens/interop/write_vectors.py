"""A subspace as a control vector of llama.cpp and repeng, and as an eraser of concept-erasure."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import torch
from gguf import GGUFWriter

from ..core.errors import SubspaceError
from ..core.files import write_atomically
from .control_vector import ARCHITECTURE
from .writing import Outgoing, writer


@writer("control-vector")
def control_vector(outgoing: Outgoing, path: Path) -> str:
    """A GGUF file that adds `scale` times the direction to the output of its block."""
    site = outgoing.site
    if site.stream != "resid_post":
        raise SubspaceError(
            f"a control vector is added to the output of a block (resid_post), {site} is none"
        )
    vector = outgoing.vector("a control vector").detach().float().cpu().numpy()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vector.gguf"
        made = GGUFWriter(file, ARCHITECTURE)
        made.add_string(f"{ARCHITECTURE}.model_hint", outgoing.lens.model.config.model_type)
        made.add_uint32(f"{ARCHITECTURE}.layer_count", 1)
        made.add_tensor(f"direction.{site.layer}", vector)
        made.write_header_to_file()
        made.write_kv_data_to_file()
        made.write_tensors_to_file()
        made.close()
        write_atomically(path, file.read_bytes())
    if site.layer == 0:
        return "repeng: ControlVector.import_gguf(path); llama.cpp refuses a vector for block 0"
    return f"llama-cli --control-vector {path}; repeng: ControlVector.import_gguf(path)"


@writer("leace")
def eraser(outgoing: Outgoing, path: Path) -> str:
    """A torch file with `proj_left`, `proj_right` and no `bias`: x - V Vᵀ x."""
    basis = outgoing.basis.detach().float().cpu()
    file = io.BytesIO()
    torch.save({"proj_left": basis, "proj_right": basis.T.contiguous(), "bias": None}, file)
    write_atomically(path, file.getvalue())
    return f'eraser = concept_erasure.LeaceEraser(**torch.load("{path}"))'
