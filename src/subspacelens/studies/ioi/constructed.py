"""An illusion built without training : what any audit must flag."""

from __future__ import annotations

import torch

from ...core.errors import SubspaceError
from ...core.geometry import Split
from ...core.site import Site
from ...engine.capture import Capture
from ...fit.closed_form import by_class
from ...fit.subspace import Subspace, made_by
from ...model.lens import LensModel


def constructed_illusion(
    lens: LensModel, captured: Capture, site: Site, target: Subspace, *, centred: bool = False
) -> Subspace:
    """v = (n + d)/√2 at an MLP: n, in the kernel of W, senses z by the difference of the class
    means there; d = W⁺t/‖W⁺t‖ writes the residual direction `target` t, in the sense in which
    nature moves along t between the classes.

    `captured` must hold both sites. Raises `SubspaceError` if the site does not write linearly.
    """
    weight = lens.map.writer(site)
    if weight is None or target.dim != 1:
        raise SubspaceError(f"{site}: an illusion needs a linear writer and one target direction")
    split = Split.of(weight, centred=centred)
    gap = _gap(captured, site)
    sensor = split.null(gap)
    t = target.basis.double()
    t = t * torch.sign(t.T @ _gap(captured, target.site))
    dormant = torch.linalg.pinv(weight.detach().cpu().double()) @ t
    basis = sensor / sensor.norm() + split.row(dormant) / split.row(dormant).norm()
    fit = dict(method="constructed-illusion", target=f"{target.fit['method']} at {target.site}")
    return made_by(lens, site, basis, captured.pairs.sha256, fit)


def _gap(captured: Capture, site: Site) -> torch.Tensor:
    """Difference of the class means, z = 1 minus z = 0, float64 (dim, 1)."""
    x, z = by_class(captured, site)
    x = x.cpu().double()
    return (x[z == 1].mean(0) - x[z == 0].mean(0))[:, None]
