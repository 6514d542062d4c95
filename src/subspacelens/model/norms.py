"""What a norm does to the residual stream, found by trying it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def norm_gain(norm: nn.Module, dim: int) -> tuple[Tensor, bool]:
    """The gain γ of a norm, float64 (dim,), and whether it subtracts the mean: of LayerNorm and
    RMSNorm alike norm(x) - norm(-x) = 2 γ · x / rms(x), x less its mean where it is subtracted."""
    parameter = next(norm.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, dim, generator=generator) + torch.linspace(-1, 1, 8)[:, None]
    with torch.no_grad():
        trial = x.to(parameter)
        odd = ((norm(trial) - norm(-trial)) / 2).cpu().double()

    def fitted(x: Tensor) -> tuple[Tensor, float]:
        unit = x / x.pow(2).mean(dim=1, keepdim=True).sqrt()
        gain = (odd * unit).sum(0) / unit.pow(2).sum(0)
        return gain, float((odd - gain * unit).norm())

    x = x.double()
    plain, error = fitted(x)
    centred, centred_error = fitted(x - x.mean(dim=1, keepdim=True))
    return (centred, True) if centred_error < error else (plain, False)
