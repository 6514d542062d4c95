"""causalab: a rotation trained for a few steps in its own interchange intervention and saved by its
own `save_modules`, whole and with features chosen, as `save_featurizers` lays them down."""

import json

import job as jobs
import pyvene as pv
import torch
from neural.featurizers import SubspaceFeaturizer
from neural.LM_units import ResidualStream

job = jobs.read()
model = jobs.model_of(job)
columns = [[[job.column]] * len(job.base)]
unit = ResidualStream(
    1, [job.column], featurizer=SubspaceFeaturizer(shape=(32, 4)), target_output=True
)
config = pv.IntervenableConfig([unit.create_intervention_config(0, "interchange")])
patched = pv.IntervenableModel(config, model)


def run(chosen):
    _, output = patched(
        {"input_ids": job.base}, [{"input_ids": job.source}],
        {"sources->base": (columns, columns)}, subspaces=[[chosen] * len(job.base)],
    )  # fmt: skip
    return output.logits[:, -1]


trained = list(unit.featurizer.featurizer.parameters())
optimiser = torch.optim.Adam(trained, lr=0.05)
for _ in range(4):
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(run(None), job.source[:, -1]).backward()
    optimiser.step()
found = {}
for name, chosen in {"whole": None, "chosen": [1, 3]}.items():
    unit.set_feature_indices(chosen)
    folder = job.out / name
    folder.mkdir()
    unit.featurizer.save_modules(str(folder / "unit"))
    (folder / "unit_indices").write_text(json.dumps(unit.get_feature_indices()))
    with torch.no_grad():
        found[name] = run(unit.get_feature_indices())
jobs.done(job, **found)
