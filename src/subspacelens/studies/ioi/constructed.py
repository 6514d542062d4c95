"""An illusion built without training: what any audit must flag."""

from __future__ import annotations

from ...core.errors import SubspaceError
from ...core.site import Site
from ...engine.capture import Capture
from ...fit.subspace import Subspace, made_by
from ...survey.construct import constructions, sensed, written_through


def constructed_illusion(captured: Capture, site: Site, target: Subspace) -> Subspace:
    """v = (n + d)/√2 at an MLP, as in arXiv 2311.17030 §3: n, in the kernel of W, senses z; d
    writes the residual direction `target`, in the sense in which nature moves along it between the
    classes.

    `captured` must hold both sites. Raises `SiteError` for a site that does not write linearly, and
    `SubspaceError` for a target of several dimensions.
    """
    if target.dim != 1:
        raise SubspaceError(f"{target.site}: an illusion writes one direction, not {target.dim}")
    weight, split = written_through(captured.lens, site)
    t = target.basis.T.double()
    t = t * (t @ sensed(captured.at(target.site)).T).sign()
    built = constructions(weight, split, sensed(captured.at(site)), t)["pseudoinverse"]
    fit = dict(method="constructed-illusion", target=f"{target.fit['method']} at {target.site}")
    return made_by(captured.lens, site, (built.read + built.write).T, captured.pairs.sha256, fit)
