"""The effects of several patches at one site, by name."""

from __future__ import annotations

import polars as pl

from .effect import Effect


class Effects(dict[str, Effect]):
    """The effect of each of several patches, by name.

    >>> effects = sl.patch(lens, task, "L18.mlp_act@S2", {"whole": patching.Full(), "ours": v})
    >>> effects["ours"].fldd.value, effects.frame().to_pandas()
    """

    def frame(self) -> pl.DataFrame:
        """One row a pair and patch: `patch`, `pair` counted from 0, and what `Effect.frame` has of
        it. polars; `.to_pandas()` where pandas and pyarrow are installed."""
        frames = [
            effect.frame().insert_column(0, pl.lit(name).alias("patch"))
            for name, effect in self.items()
        ]
        return pl.concat(frames)

    def __repr__(self) -> str:
        return f"Effects({', '.join(self)})"
