"""This machine and this process: versions of what numbers rest on, and memory."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the tensors of a device live."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def versions() -> dict[str, str]:
    """Versions of what the numbers rest on."""
    named = {"python": platform.python_version()}
    for name in ("subspacelens", "torch", "transformers", "numpy", "scipy", "scikit-learn"):
        try:
            named[name] = version(name)
        except PackageNotFoundError:
            named[name] = "unknown"
    return named
