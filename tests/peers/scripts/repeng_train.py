"""repeng: a control vector trained and exported by repeng, and one that we wrote imported."""

import job as jobs
import torch
from repeng import ControlModel, ControlVector, DatasetEntry
from transformers import AutoTokenizer

job = jobs.read()
model = jobs.model_of(job)
tokenizer = AutoTokenizer.from_pretrained(job.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
words = [w for w, _ in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])][4:24]
data = [DatasetEntry(f"{a} {b}", f"{b} {a}") for a, b in zip(words[::2], words[1::2], strict=True)]
controlled = ControlModel(model, [1, 2])
vector = ControlVector.train(controlled, tokenizer, data, batch_size=4)
vector.export_gguf(job.out / "vector.gguf")


def run(chosen, strength):
    controlled.set_control(chosen, strength)
    with torch.no_grad():
        # One at a time: it expects a row of position ids for each prompt of a batch.
        rows = [controlled(row[None]).logits[:, -1] for row in job.base]
        return torch.cat(rows)


both = run(vector, 1.5)
controlled.reset()
controlled.unwrap()
controlled = ControlModel(model, [1])
ours = run(ControlVector.import_gguf(job.ours), 1.0)
jobs.done(job, both=both, ours=ours)
