"""dictionary_learning: an `ae.pt`, as its trainers save one."""

import importlib.util
from pathlib import Path

import job as jobs
import torch

spec = importlib.util.find_spec("dictionary_learning")
file = Path(spec.submodule_search_locations[0]) / "dictionary.py"
spec = importlib.util.spec_from_file_location("dictionary", file)
dictionary = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dictionary)

job = jobs.read()
x = torch.randn(200, 32)
made = dictionary.AutoEncoder(32, 40)
optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
for _ in range(5):
    optimiser.zero_grad()
    (made(x) - x).square().mean().backward()
    optimiser.step()
torch.save(made.state_dict(), job.out / "ae.pt")
gated = dictionary.GatedAutoEncoder(32, 40)
torch.save(gated.state_dict(), job.out / "gated.pt")
one = torch.zeros(1, 40)
one[0, 5] = 1
latents = made.encode(x)
wanted = latents.clone()
wanted[:, 5] = 2.0
jobs.done(
    job, latent=made.decode(one) - made.decode(0 * one), gated=gated.decoder(one), x=x,
    set=made.decode(wanted) + (x - made.decode(latents)),
)  # fmt: skip
