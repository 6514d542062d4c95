# %% [markdown]
# # Your subspace
#
# You have a direction already: trained with pyvene, a latent of a sparse autoencoder, a steering
# vector. It is audited by pointing at its file, and the tool that made it need not be installed.
# This notebook makes such files first, in the formats of three tools, around one direction that is
# easy to have: the difference of the class means of SmolLM2's residual stream on indirect object
# identification (IOI).

# %%
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import subspacelens as sl

lens = sl.load_model("smollm2")
task = sl.ioi(lens.tokenizer, train=48, test=48, held_out=0)
site = sl.Site.parse("L17.resid_post@S2")
captures = sl.capture_task(lens, task, [site])
mean = sl.FITS["mean-difference"](lens, captures.train, site)
mean.save("mean.safetensors")
print(mean.site, mean.dim, mean.fit)

# %% [markdown]
# ## A folder of pyvene
#
# `export` writes the folder that pyvene's own `IntervenableModel.save` would: a configuration and
# the state of a low-rank rotation. A folder that you trained looks the same.

# %% language="bash"
# subspacelens export mean.safetensors --to pyvene --out pyvene
# ls pyvene
# subspacelens inspect pyvene

# %% [markdown]
# Layer and stream are in pyvene's file, the token is not: `@S2` adds it.

# %%
subspace = sl.from_foreign(lens, sl.read_foreign("pyvene"), "@S2")
result = sl.audit(lens, captures, subspace, budget="fast")
print(result)
print(*result.record.verdict.reasons, sep="\n")

# %% [markdown]
# On the command line, in one go:
#
# ```
# subspacelens audit --subspace pyvene --site @S2
# ```
#
# ## Latents of a sparse autoencoder
#
# SAELens keeps a dictionary as `sae_weights.safetensors` beside `cfg.json`. This one has fifteen
# random latents, and the direction above as the sixteenth, number 15.

# %%
width = mean.basis.shape[0]
decoder = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
decoder[15] = mean.basis[:, 0]
decoder /= decoder.norm(dim=1, keepdim=True)
weights = {
    "W_enc": decoder.T.contiguous(),
    "W_dec": decoder,
    "b_enc": torch.zeros(16),
    "b_dec": torch.zeros(width),
}
config = {"architecture": "standard", "d_in": width, "d_sae": 16}
config["metadata"] = {"hook_name": "blocks.17.hook_resid_post"}
Path("sae").mkdir(exist_ok=True)
save_file(weights, "sae/sae_weights.safetensors")
Path("sae/cfg.json").write_text(json.dumps(config))
found = sl.read_foreign("sae")
found.tool, found.kind, list(found.parts)

# %% [markdown]
# One latent is a direction like any other. Many are screened together: each is judged fast on one
# capture, and q is the false discovery rate over all of them.

# %%
latent = sl.from_foreign(lens, found, "@S2", rows=[15])
print(sl.audit(lens, captures, latent, budget="fast"))
screen = sl.screen(lens, captures, site, decoder)
sl.write_screen(screen, "runs/latents")
screen.frame().sort("q").select("row", "verdict", "fldd", "p", "q").head(4)

# %% [markdown]
# ## A steering vector
#
# A vector that is *added* is another operation than an exchange, so it is audited as what it is:
# does adding it write what nature writes when the feature changes, and how far may one go? Here it
# is as long as the class means lie apart, in a NumPy file as many notebooks leave one.

# %%
replay = captures.train.at(site, lens)
z = torch.tensor([pair.z[0] for pair in replay.pairs])
vector = replay.base[z == 1].mean(0) - replay.base[z == 0].mean(0)
np.save("steer.npy", vector.numpy())
added = sl.audit_addition(lens, captures, site, vector, alpha=1.0, budget="fast")
print(added.label, *added.record.verdict.reasons, sep="\n")
print(f"leaves nature at alpha {added.record.curve.leaves:.2f}")

# %% [markdown]
# With ten times the dose:

# %%
far = sl.audit_addition(lens, captures, site, vector, alpha=10.0, budget="fast")
print(far.label, far.record.verdict.code, *far.record.verdict.reasons, sep="\n")

# %% [markdown]
# On the command line:
#
# ```
# subspacelens audit --site L17.resid_post@S2 --operation add --alpha 10 --subspace steer.npy
# ```
#
# Which tools are read, where each says its place, and what was once misread: [other
# tools](../interop.md). Additions, ablations and latents that are set:
# [operations](../operations.md).
