"""pyvene: each of its rotations, trained for a few steps, saved by its own `save`."""

import job as jobs
import pyvene as pv
import torch

job = jobs.read()
model = jobs.model_of(job)
columns = [[[job.column]] * len(job.base)]
inputs = {"input_ids": job.base}, [{"input_ids": job.source}]
answers = job.source[:, -1]


def run(patched):
    _, output = patched(*inputs, {"sources->base": (columns, columns)})
    return output.logits[:, -1]


def train(patched, steps=4):
    trained = [p for p in patched.get_trainable_parameters() if p.is_floating_point()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(trained, lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(run(patched), answers).backward()
        optimiser.step()


def patched_by(kind, component, layer=1, width=32, rank=2, **more):
    if "." in component:
        intervention = kind(embed_dim=width, low_rank_dimension=rank, **more)
        config = pv.RepresentationConfig(0, component, "pos", 1, intervention=intervention)
    else:
        config = pv.RepresentationConfig(
            layer, component, "pos", 1, low_rank_dimension=rank, intervention_type=kind
        )
    return pv.IntervenableModel(pv.IntervenableConfig([config]), model)


kinds = {
    "low_rank": (pv.LowRankRotatedSpaceIntervention, "block_output"),
    "rotated": (pv.RotatedSpaceIntervention, "block_input"),
    "boundless": (pv.BoundlessRotatedSpaceIntervention, "block_output"),
    "masked": (pv.SigmoidMaskRotatedSpaceIntervention, "block_output"),
    "mlp_output": (pv.LowRankRotatedSpaceIntervention, "mlp_output"),
    "mlp_activation": (pv.LowRankRotatedSpaceIntervention, "mlp_activation"),
    "path": (pv.LowRankRotatedSpaceIntervention, "model.layers[1].mlp.down_proj.input"),
}
found = {}
for name, (kind, component) in kinds.items():
    patched = patched_by(kind, component, width=56 if name == "path" else 32)
    (intervention,) = patched.interventions.values()
    if name == "boundless":
        intervention.set_temperature(torch.tensor(0.01))
        intervention.intervention_boundaries.data.fill_(0.14)
    if name == "masked":
        intervention.set_temperature(torch.tensor(0.01))
        masks = torch.full((32,), -1.0)
        masks[[3, 8]] = 1.0
        intervention.masks = torch.nn.Parameter(masks)
    if name == "rotated":
        intervention.set_interchange_dim(3)
    train(patched)
    if name == "boundless":
        intervention.intervention_boundaries.data.fill_(0.14)
        intervention.set_temperature(torch.tensor(0.01))
    if name == "masked":
        intervention.masks.data.copy_(masks)
        intervention.set_temperature(torch.tensor(0.01))
    with torch.no_grad():
        found[name] = run(patched)
    patched.save(str(job.out / name))
jobs.done(job, **found)
