"""steering-vectors: vectors trained at each of its layer types, and applied by its own `apply`."""

import job as jobs
import torch
from steering_vectors import train_steering_vector
from transformers import AutoTokenizer

job = jobs.read()
model = jobs.model_of(job)
tokenizer = AutoTokenizer.from_pretrained(job.model)
words = [w for w, _ in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])][4:16]
samples = [(f"{a} {b}", f"{b} {a}") for a, b in zip(words[::2], words[1::2], strict=True)]
found = {}
for kind in ("decoder_block", "mlp", "self_attn"):
    vector = train_steering_vector(model, tokenizer, samples, layers=[1, 2], layer_type=kind)
    assert vector.layer_type == kind
    with torch.no_grad(), vector.apply(model, multiplier=1.5):
        found[f"{kind}.logits"] = model(job.base).logits[:, -1]
    for layer, x in vector.layer_activations.items():
        found[f"{kind}.{layer}"] = x
jobs.done(job, **found)
