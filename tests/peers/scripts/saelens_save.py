"""SAELens: one of each architecture, trained for a few steps, saved by its own `save_model` and
loaded by its own `load_from_disk`; a latent of each is interchanged by a plain hook, and set by its
own `encode` and `decode` with the error term kept."""

import job as jobs
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

job = jobs.read()
model = jobs.model_of(job)
block = model.model.layers[1]
seen = []
handle = block.register_forward_hook(lambda _m, _a, out: seen.append(out))
with torch.no_grad():
    for ids in (job.base, job.source):
        model(ids)
handle.remove()
activations = torch.cat([x.reshape(-1, 32) for x in seen])
theirs = seen[1][:, job.column]
found = {}
for kind, more in {"standard": {}, "gated": {}, "topk": {"k": 4}, "jumprelu": {}}.items():
    made = SAE.from_dict(
        {
            "architecture": kind, "d_in": 32, "d_sae": 40, "dtype": "float32", "device": "cpu",
            "apply_b_dec_to_input": True, "normalize_activations": "none", **more,
        }
    )  # fmt: skip
    made.cfg.metadata = SAEMetadata(
        model_name="tiny",
        hook_name="blocks.1.hook_resid_post",
        prepend_bos=False,
        context_size=9,
        hook_head_index=None,
    )
    optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(5):
        optimiser.zero_grad()
        (made(activations) - activations).square().mean().backward()
        optimiser.step()
    made.save_model(job.out / kind)
    again = SAE.load_from_disk(job.out / kind)
    v = again.W_dec[7].detach()
    v = v / v.norm()

    def patch(_module, _args, out, v=v):
        out = out.clone()
        here = out[:, job.column]
        out[:, job.column] = here + ((theirs - here) @ v)[:, None] * v
        return out

    def set_latent(_module, _args, out, sae=again):
        out = out.clone()
        here = out[:, job.column]
        latents = sae.encode(here)
        wanted = latents.clone()
        wanted[:, 7] = 5.0
        out[:, job.column] = sae.decode(wanted) + (here - sae.decode(latents))
        return out

    for name, hook in {kind: patch, f"{kind}.set": set_latent}.items():
        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            found[name] = model(job.base).logits[:, -1]
        handle.remove()
jobs.done(job, **found)
