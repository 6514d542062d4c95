"""Patch a subspace of a language model's activations; find out whether the effect is real.

>>> import subspacelens as sl
>>> lens = sl.load_model("smollm2")
>>> task = sl.ioi(lens.tokenizer)
>>> site = sl.Site.parse("L18.mlp_act@S2")
>>> captures = sl.capture_task(lens, task, [site])
>>> subspace = sl.das(lens, captures.train, site)
>>> result = sl.audit(lens, captures, subspace)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Public names are loaded when the first of them is used, so that `import subspacelens`, and
    with it the command line's `--help`, takes no time."""
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    public = import_module(".public", __name__)
    return globals()[name] if name in globals() else getattr(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(".public", __name__).__all__})
