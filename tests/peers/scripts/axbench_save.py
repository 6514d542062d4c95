"""AxBench: two steering vectors trained for a few steps, saved by its own `save`, loaded by `load`
and added by its own intervention. Of the package only what that takes is imported."""

import sys
from importlib.machinery import PathFinder
from types import ModuleType, SimpleNamespace

import job as jobs
import pandas
import torch

job = jobs.read()
package = sys.modules["axbench"] = ModuleType("axbench")
package.__path__ = list(PathFinder.find_spec("axbench").submodule_search_locations)
unused = sys.modules["axbench.scripts.inference"] = ModuleType("axbench.scripts.inference")
unused.prepare_df = None
from axbench.models.steering_vector import SteeringVector  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

torch.distributed.init_process_group(
    "gloo", init_method=f"file://{job.out / 'group'}", rank=0, world_size=1
)
model = jobs.model_of(job)
tokenizer = AutoTokenizer.from_pretrained(job.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
words = [w for w, _ in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])][4:24]
wanted = SimpleNamespace(batch_size=2, n_epochs=2, lr=0.05, weight_decay=0.0, topk=1)
for first in (0, 1):
    concept = SteeringVector(model, tokenizer, layer=1, training_args=wanted, device="cpu")
    concept.make_model()
    rows = [
        {"input": " ".join(words[i : i + 4]), "output": f" {words[i + 5]}"}
        for i in range(first, 12, 2)
    ]
    concept.train(pandas.DataFrame(rows), prefix_length=1)
    concept.save(job.out)
again = SteeringVector(model, tokenizer, layer=1, device="cpu")
again.load(job.out, mode="steering")
count = len(job.base)
with torch.no_grad():
    _, output = again.ax_model(
        {"input_ids": job.base},
        subspaces=[
            {
                "idx": torch.ones(count, dtype=torch.long),
                "mag": torch.full((count,), 0.5),
                "max_act": torch.full((count,), 3.0),
            }
        ],
    )
jobs.done(job, logits=output.logits[:, -1])
