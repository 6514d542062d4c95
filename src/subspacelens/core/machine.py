"""This machine and this process: versions of what numbers rest on, and memory."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from .format import counted


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far. Not `ru_maxrss` where Linux says it otherwise:
    that begins with what the process that started this one had."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the tensors of a device live; on CUDA with those that this process
    has taken for tensors and uses for none."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def quarter_free(devices: Iterable[torch.device]) -> int:
    """A quarter of what is free on that of the devices where least is: the budget in bytes of work
    that goes through all of them, where nothing else is said."""
    return min(free_memory(device) for device in devices) // 4


def machine() -> str:
    """`AMD EPYC, 2 cores, 15.6 GiB, Linux x86_64`: what this runs on, with its CUDA devices."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    parts = (
        _processor(),
        counted(cores, "core"),
        f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        f"{platform.system()} {platform.machine()}",
        *cuda,
    )
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    """The processor's name as Linux tells it, else as Python does."""
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def versions() -> dict[str, str]:
    """Versions of what the numbers rest on."""
    named = {"python": platform.python_version()}
    for name in ("subspacelens", "torch", "transformers", "numpy", "scipy", "scikit-learn"):
        try:
            named[name] = version(name)
        except PackageNotFoundError:
            named[name] = "unknown"
    return named
