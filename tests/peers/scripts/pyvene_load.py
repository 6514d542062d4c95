"""pyvene: loads folders that we wrote, by its own `load`, and by hand where a path of modules is
the component, and runs them."""

import job as jobs
import pyvene as pv
import torch

job = jobs.read()
model = jobs.model_of(job)
columns = [[[job.column]] * len(job.base)]
found = {}
for name, lines in job.folders.items():
    scope = {"pv": pv, "torch": torch, "model": model}
    exec(lines, scope)
    with torch.no_grad():
        _, output = scope["patched"](
            {"input_ids": job.base}, [{"input_ids": job.source}],
            {"sources->base": (columns, columns)},
        )  # fmt: skip
    found[name] = output.logits[:, -1]
jobs.done(job, **found)
