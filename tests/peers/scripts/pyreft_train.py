"""pyreft: LoReFT, trained for a few steps, saved by its own `save`."""

import job as jobs
import pyreft
import torch

job = jobs.read()
model = jobs.model_of(job)
config = pyreft.ReftConfig(
    representations={
        "layer": 1, "component": "block_output", "low_rank_dimension": 2,
        "intervention": pyreft.LoreftIntervention(
            embed_dim=32, low_rank_dimension=2, dtype=torch.float32
        ),
    }
)  # fmt: skip
reft = pyreft.get_reft_model(model, config, set_device=False)
where = {"sources->base": (None, [[[job.column]] * len(job.base)])}


def run():
    _, output = reft({"input_ids": job.base}, unit_locations=where)
    return output.logits[:, -1]


parameters = [p for each in reft.interventions.values() for p in each.parameters()]
optimiser = torch.optim.Adam(parameters, lr=0.05)
for _ in range(4):
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(run(), job.source[:, -1]).backward()
    optimiser.step()
with torch.no_grad():
    logits = run()
reft.save(str(job.out / "reft"))
jobs.done(job, logits=logits)
