# %% [markdown]
# # Sweeps
#
# A sweep is a grid of cells: models × tasks × sites × fits × dimensions × seeds. Each cell is kept
# as it finishes, so that a sweep may be killed at any moment and goes on. This one asks, around
# the layers where SmolLM2 knows who is named twice, what a direction does in the stream and inside
# the MLPs.

# %%
from pathlib import Path

import subspacelens as sl

Path("grid.toml").write_text("""
models = ["smollm2"]
tasks  = ["ioi"]
sites  = ["L15-18.resid_post@S2", "L17-18.mlp_act@S2"]
fits   = ["mean-difference", { method = "das", steps = 6 }]
kind   = "fit"        # "audit" judges each; "fit" says its effect alone
pairs  = 32
""")
grid = sl.read_grid("grid.toml")
grid.sites, grid.fits

# %% [markdown]
# ## Run it
#
# `backend="local"` spreads the cells over processes of this machine, `"ray"` over a cluster. The
# numbers are the same bits however they are spread.

# %%
sl.sweep(grid, "runs/sweep", backend="serial")

# %% [markdown]
# Run it again, and everything is found.

# %%
sl.sweep(grid, "runs/sweep", backend="serial")

# %% [markdown]
# ## What came out
#
# A row a cell. `full_fldd` is what the whole component does, `subspace_fldd` what its direction
# does.

# %%
table = sl.results("runs/sweep").sort("fit", "stream", "layer")
for row in table.iter_rows(named=True):
    print(
        f"{row['site']:18} {row['fit']:16} direction {row['subspace_fldd']:5.2f}"
        f"   whole {row['full_fldd']:5.2f}"
    )

# %% [markdown]
# A condition is SQL on the columns:

# %%
strong = sl.results("runs/sweep", "subspace_fldd > 0.5 and full_fldd < 0.1")
strong.select("site", "fit", "subspace_fldd", "full_fldd")

# %% [markdown]
# A direction that does much where its whole component does nothing is what an audit is for. On the
# command line, with a dry run first that says how many cells there are and about how long they
# take:
#
# ```
# subspacelens sweep grid.toml --out runs/sweep --dry-run
# subspacelens sweep grid.toml --out runs/sweep --workers 8
# subspacelens results runs/sweep --where "subspace_fldd > 0.5 and full_fldd < 0.1"
# ```
#
# What is kept, and how it survives a power cut: [sweeps](../sweeps.md).
