"""One rival's fit of one direction, in a process of its own: `python -I peer_process.py NAME JOB`.

It runs where subspacelens need not be installed, so it imports nothing of it. JOB is a JSON file
(`whole_fit.job_of`). After the model is loaded and after every step it writes one line of JSON to
standard output, with the seconds so far, the mean logit difference of the training pairs in nats,
and the direction, and waits for a line: `on`, or anything else to stop. What it waits is not
counted. Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

TEMPERATURE = 100.0


class Stopped(Exception):
    """Whoever listens has seen enough."""


class Listener(Protocol):
    """Whoever is told of each step."""

    def step(self, loss: float, direction: Tensor) -> None: ...


class Reporter:
    """The clock, and the lines to and from whoever listens."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._steps, self._spent, self._began = 0, 0.0, 0.0

    def ready(self, load_seconds: float, packages: Iterable[str]) -> None:
        """The model stands; the clock is not yet running."""
        self._say(load_seconds=load_seconds, versions={name: version(name) for name in packages})

    def start(self) -> None:
        """Sets the clock to zero and lets it run."""
        self._steps, self._spent, self._began = 0, 0.0, time.perf_counter()

    def step(self, loss: float, direction: Tensor, steps: int = 1) -> None:
        """Raises `Stopped` where the answer is not to go on."""
        self._spent += time.perf_counter() - self._began
        self._steps += steps
        values = direction.detach().flatten().tolist()
        self._say(steps=self._steps, seconds=self._spent, loss=loss, direction=values)
        self._began = time.perf_counter()

    def _say(self, **found: Any) -> None:
        print(json.dumps(found | {"peak_rss_bytes": _peak()}), file=self._out, flush=True)
        if sys.stdin.readline().strip() != "on":
            raise Stopped


def _peak() -> int:
    """Largest resident bytes of this process. Not `ru_maxrss` where Linux says it otherwise: that
    begins with what the process that started this one had."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_job(path: str) -> SimpleNamespace:
    """The job, its lists of numbers as tensors on its device; sets the number of threads."""
    job = json.loads(Path(path).read_bytes())
    torch.set_num_threads(job["threads"])
    job |= {
        name: torch.tensor(job[name], device=job["device"])
        for name in ("base", "source", "columns", "answers", "start")
    }
    job["start"] = job["start"][:, None]
    return SimpleNamespace(**job)


def load(job: SimpleNamespace) -> Any:
    """The model as Transformers makes it, weights frozen."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    return model.to(job.device).eval().requires_grad_(False)


@torch.no_grad()
def warm(model: Callable[..., Any], job: SimpleNamespace) -> None:
    """One pass of the base prompts, so that no rival pays for the first use of the machine."""
    model(job.base)


def adam(
    loss_of: Callable[[], Tensor],
    parameters: list[Tensor],
    direction: Callable[[], Tensor],
    job: SimpleNamespace,
    reporter: Listener,
) -> None:
    """Adam with a rate that falls from `job.lr` to a tenth over `job.steps` steps."""
    optimiser = torch.optim.Adam(parameters, lr=job.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, job.steps)
    for _ in range(job.steps):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward(inputs=parameters)
        optimiser.step()
        schedule.step()
        reporter.step(float(loss.detach()), direction())


def begin_at(layer: torch.nn.Module, start: Tensor) -> None:
    """Sets an orthogonally parametrised weight. PyTorch draws the frame that Adam then moves in, so
    that steps can be repeated only from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer.weight = start


def by_hooks(job: SimpleNamespace, reporter: Reporter) -> None:
    """Source activations are read once; a step is a full pass of the base with a hook, and only
    the last column meets the two rows of the unembedding that the loss needs."""
    began = time.perf_counter()
    model = load(job)
    module = model.get_submodule(job.module)
    warm(model.base_model, job)
    reporter.ready(time.perf_counter() - began, ("torch", "transformers"))
    every = torch.arange(len(job.base), device=job.device)

    def hidden(ids: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
        handle = module.register_forward_pre_hook(lambda _, args: (hook(args[0]), *args[1:]))
        try:
            return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        finally:
            handle.remove()

    reporter.start()
    seen: list[Tensor] = []

    def see(x: Tensor) -> Tensor:
        seen.append(x[every, job.columns].clone())
        return x

    with torch.no_grad():
        hidden(job.source, see)
    theirs = seen[0]
    rows = model.get_output_embeddings().weight[job.answers]
    free = job.start.clone().requires_grad_(True)

    def loss_of() -> Tensor:
        basis = free / free.norm()

        def patch(x: Tensor) -> Tensor:
            ours, patched = x[every, job.columns], x.clone()
            patched[every, job.columns] = ours + ((theirs - ours) @ basis) @ basis.T
            return patched

        found = torch.einsum("nd,nmd->nm", hidden(job.base, patch), rows)
        return (found[:, 0] - found[:, 1]).mean()

    @torch.no_grad()
    def retracted() -> Tensor:
        return free.div_(free.norm())

    adam(loss_of, [free], retracted, job, reporter)


def by_pyvene(job: SimpleNamespace, reporter: Reporter) -> None:
    """`LowRankRotatedSpaceIntervention` in the loop of pyvene's tutorials; only the last column is
    unembedded."""
    import pyvene as pv  # type: ignore[import-not-found]

    began = time.perf_counter()
    model = load(job)
    intervention = pv.LowRankRotatedSpaceIntervention(
        embed_dim=len(job.start), low_rank_dimension=1
    )
    representation = pv.RepresentationConfig(
        job.layer, f"{job.module}.input", "pos", 1, intervention=intervention
    )
    patched = pv.IntervenableModel(pv.IntervenableConfig([representation]), model)
    patched.set_device(job.device)
    layer = intervention.rotate_layer
    begin_at(layer, job.start)
    warm(model, job)
    reporter.ready(time.perf_counter() - began, ("torch", "transformers", "pyvene"))
    columns = [[[column] for column in job.columns.tolist()]]
    every = torch.arange(len(job.base), device=job.device)

    def inputs(ids: Tensor) -> dict[str, Any]:
        return {"input_ids": ids, "logits_to_keep": 1}

    def loss_of() -> Tensor:
        _, output = patched(
            inputs(job.base), [inputs(job.source)], {"sources->base": (columns, columns)}
        )
        logits = output.logits[:, -1]
        return (logits[every, job.answers[:, 0]] - logits[every, job.answers[:, 1]]).mean()

    reporter.start()
    adam(loss_of, list(intervention.parameters()), lambda: layer.weight, job, reporter)


def by_transformer_lens(job: SimpleNamespace, reporter: Reporter) -> None:
    """One call of `fit_das` at its own rate, looked at each time that it runs the model.

    Its loss is the cross-entropy of the two answers. Their logits are divided by `TEMPERATURE`, so
    that it is the mean logit difference, up to a factor and a constant, which Adam does not see.
    """
    from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]
    from transformer_lens.tools.analysis import interchange  # type: ignore[import-not-found]

    began = time.perf_counter()
    model = TransformerBridge.boot_transformers(
        job.model, dtype=getattr(torch, job.dtype), device=job.device
    )
    model.eval()
    warm(model, job)
    reporter.ready(time.perf_counter() - began, ("torch", "transformers", "transformer-lens"))
    subspaces: list[Any] = []
    losses: list[float] = []

    class Watched(interchange.LearnedSubspace):
        def __init__(self, width: int, rank: int) -> None:
            super().__init__(width, rank)
            subspaces.append(self)

    def task_logits(rows: Tensor) -> Tensor:
        ids, answers = rows[:, :-2], rows[:, -2:]
        if losses:
            reporter.step(losses[-1], subspaces[0].basis)
        logits = model(ids, logits_to_keep=1)[:, -1].gather(1, answers)
        if subspaces:
            losses.append(float((logits[:, 0] - logits[:, 1]).detach().mean()))
        return logits / TEMPERATURE

    interchange.LearnedSubspace = Watched
    reporter.start()
    result = interchange.fit_das(
        model,
        f"blocks.{job.layer}.mlp.hook_post",
        torch.cat([job.base, job.answers], dim=1),
        torch.cat([job.source, job.answers], dim=1),
        torch.ones(len(job.base), dtype=torch.long),
        task_logits,
        rank=1,
        base_positions=job.columns,
        source_positions=job.columns,
        epochs=job.steps,
    )
    reporter.step(losses[-1], result.basis)


RIVALS: dict[str, Callable[[SimpleNamespace, Reporter], None]] = {
    "hooks": by_hooks,
    "transformer-lens": by_transformer_lens,
    "pyvene": by_pyvene,
}


def main(rival: Callable[[SimpleNamespace, Reporter], None], path: str) -> None:
    """Runs `rival` on the job at `path` until it is done, or told to stop."""
    reporter = Reporter()
    try:
        rival(read_job(path), reporter)
    except Stopped:
        return


if __name__ == "__main__":
    main(RIVALS[sys.argv[1]], sys.argv[2])
