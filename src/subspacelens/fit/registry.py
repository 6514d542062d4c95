"""The fits by name. Each is registered once, where it is defined, and its signature is its options:
the command line, sweeps, audits and time estimates read them here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, signature
from reprlib import repr as shortened
from types import MappingProxyType
from typing import Annotated, Any, Concatenate, ParamSpec

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..core.errors import SubspaceError
from ..core.site import Site
from ..engine.capture import Capture
from ..model.lens import LensModel
from .subspace import Subspace

P = ParamSpec("P")

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

COMMON = ("dim", "seed")
"""Keywords that are the caller's, not options of a method."""

_registered: dict[str, Fit] = {}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A way of finding a subspace, called as the function that it is.

    `gradients(pairs, options)` counts the gradients of single pairs that it takes; None if it takes
    none. `classes`: the pairs must carry z. `between`: it finds fewer directions than z has values.
    `blind`: it does not look at the pairs. `check(options)` raises `SubspaceError` for options that
    do not go together. `schema` holds type, range and default of every keyword.
    """

    name: str
    function: Callable[..., Subspace] = field(repr=False)
    schema: type[BaseModel] = field(repr=False)
    gradients: Callable[[int, Mapping[str, Any]], int] | None = None
    check: Callable[[Mapping[str, Any]], object] | None = None
    classes: bool = False
    between: bool = False
    blind: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options and their defaults."""
        fields = self.schema.model_fields.items()
        return {name: each.default for name, each in fields if name not in COMMON}

    def count_gradients(self, pairs: int, options: Mapping[str, Any]) -> int:
        """Gradients of single pairs that a fit to `pairs` pairs takes with these options."""
        return self.gradients(pairs, self.options | dict(options)) if self.gradients else 0

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises `SubspaceError` for an option that the method does not have, or whose value is not
        of its type, or out of range."""
        self._checked(options, self.options, strict=True)

    def read_options(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The values of options that are given as text. Raises `SubspaceError` as `check_options`
        does."""
        return self._checked(texts, self.options, strict=False)

    def _checked(
        self, settings: Mapping[str, Any], known: Iterable[str], *, strict: bool
    ) -> dict[str, Any]:
        unknown = [name for name in settings if name not in known]
        if unknown:
            names = ", ".join(self.options)
            more = f"; its options are {names}" if names else ""
            raise SubspaceError(f"{self.name} takes no {', '.join(unknown)}{more}")
        try:
            values = self.schema.model_validate(dict(settings), strict=strict)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{first['loc'][0]}={shortened(first['input'])}"
            reason = first["msg"][0].lower() + first["msg"][1:]
            raise SubspaceError(f"{self.name}: {what}: {reason}") from None
        given = values.model_dump(exclude_unset=True)
        if self.check:
            self.check(given)
        return given

    def __call__(
        self, lens: LensModel, captured: Capture, site: Site | str, **settings: Any
    ) -> Subspace:
        """Fits under `torch.enable_grad()`, whatever the caller's grad mode.

        Raises `SubspaceError` for settings that are out of range or do not fit the site,
        `ModelError` for a capture of another model, `SiteError` for a site that was not captured,
        and `TaskError` where base and source do not differ at the site.
        """
        settings = self._checked(settings, self.schema.model_fields, strict=False)
        site = Site.of(site)
        dim = settings.get("dim", 1)
        check_dim(site, dim, lens.map.dim(site))
        captured.at(site, lens).require_difference()
        with torch.enable_grad():
            return self.function(lens, captured, site, **settings)


FITS: Mapping[str, Fit] = MappingProxyType(_registered)


def register(
    name: str,
    *,
    gradients: Callable[[int, Mapping[str, Any]], int] | None = None,
    check: Callable[[Mapping[str, Any]], object] | None = None,
    classes: bool = False,
    between: bool = False,
    blind: bool = False,
) -> Callable[
    [Callable[Concatenate[LensModel, Capture, Site, P], Subspace]],
    Callable[Concatenate[LensModel, Capture, Site | str, P], Subspace],
]:
    """Registers a function (lens, captured, site, *, dim, seed, ...) under `name`; its keywords,
    with their annotations and defaults, are its options. What they mean: see `Fit`. The function
    gets a `Site`; who calls it may write it as text.

    >>> @register("first-axis", blind=True)
    ... def first_axis(lens, captured, site, *, dim: int = 1, seed: int = 0) -> Subspace: ...
    """

    def decorate(
        function: Callable[Concatenate[LensModel, Capture, Site, P], Subspace],
    ) -> Callable[Concatenate[LensModel, Capture, Site | str, P], Subspace]:
        fit = Fit(
            name=name, function=function, schema=_schema(name, function), gradients=gradients,
            check=check, classes=classes, between=between, blind=blind,
        )  # fmt: skip
        _registered[name] = fit

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Subspace:
            return fit(*args, **kwargs)

        return call

    return decorate


def named(name: str) -> Fit:
    """The fit of this name. Raises `SubspaceError`, with all names, where there is none."""
    if name not in FITS:
        raise SubspaceError(f"unknown fit '{name}': one of {', '.join(sorted(FITS))}")
    return FITS[name]


def fit(
    lens: LensModel, captured: Capture, site: Site | str, method: str = "das", **options: Any
) -> Subspace:
    """A subspace of `site`, found on the pairs of `captured` by the fit that is registered as
    `method`, with its `options` (`dim` and `seed` for all of them).

    Raises `SubspaceError` for an unknown method, an option that it lacks or a value out of range,
    and what the fit raises.

    >>> direction = sl.fit(lens, captures.train, site, "mean-difference")
    """
    return named(method)(lens, captured, site, **options)


def check_dim(site: Site, dim: int, width: int) -> None:
    """Raises `SubspaceError` unless 1 <= dim <= width."""
    if not 1 <= dim <= width:
        raise SubspaceError(f"{site} is {width} wide: a subspace of {dim} dimensions does not fit")


def _schema(name: str, function: Callable[..., Subspace]) -> type[BaseModel]:
    parameters = signature(function, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        each.name: (each.annotation, each.default)
        for each in parameters
        if each.kind is Parameter.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model(f"{name} options", __config__=config, **fields)
