"""What every script begins and ends with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch


def read() -> SimpleNamespace:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    job = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    job.base, job.source = torch.tensor(job.base), torch.tensor(job.source)
    job.out = Path(job.out)
    return job


def model_of(job: SimpleNamespace):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def done(job: SimpleNamespace, **arrays) -> None:
    found = {name: torch.as_tensor(x).detach().float().numpy() for name, x in arrays.items()}
    np.savez(job.out / "done.npz", **found)
