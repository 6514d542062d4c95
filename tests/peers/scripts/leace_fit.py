"""concept-erasure: an eraser fitted by LEACE, and one that we wrote."""

import job as jobs
import torch
from concept_erasure import LeaceEraser, LeaceFitter

job = jobs.read()
x = torch.randn(200, 32) @ torch.randn(32, 32)
z = torch.randint(0, 2, (200,))
x[z == 1, :3] += 4
eraser = LeaceFitter.fit(x, z).eraser
torch.save(vars(eraser), job.out / "leace.pt")
ours = LeaceEraser(**torch.load(job.ours))
jobs.done(job, x=x, erased=eraser(x), ours=ours(x))
