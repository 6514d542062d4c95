"""TransformerLens: a subspace fitted by its own `fit_das` and applied by its own
`run_with_intervention`, and code that we wrote run by `run_with_hooks`."""

import importlib.util

import job as jobs
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import interchange

job = jobs.read()
model = TransformerBridge.boot_transformers(job.model, dtype=torch.float32, device="cpu")
model.eval()
columns = torch.full((len(job.base),), job.column)
found = {}
for name, hook in {
    "mlp": "blocks.1.mlp.hook_post",
    "resid": "blocks.2.hook_resid_pre",
    "mid": "blocks.2.hook_resid_mid",
}.items():
    result = interchange.fit_das(
        model, hook, job.base, job.source, job.source[:, -1] % 2,
        lambda ids: model(ids)[:, -1, :2], rank=2, base_positions=columns,
        source_positions=columns, epochs=2,
    )  # fmt: skip
    torch.save(result.subspace.state_dict(), job.out / f"{name}.pt")
    _, cache = model.run_with_cache(job.source)
    with torch.no_grad():
        found[name] = interchange.run_with_intervention(
            model, hook, interchange.SubspaceInterchange(result.basis.detach()), job.base,
            cache[hook][:, job.column], lambda ids: model(ids)[:, -1], positions=columns,
        )  # fmt: skip
for name, folder in job.folders.items():
    spec = importlib.util.spec_from_file_location(name, f"{folder}/interchange.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    _, cache = model.run_with_cache(job.source)
    with torch.no_grad():
        found[f"ours_{name}"] = model.run_with_hooks(
            job.base, fwd_hooks=[code.hook_for(cache[code.NAME], job.column)]
        )[:, -1]
jobs.done(job, **found)
