"""How much memory and time long captures, a large model and a wide vocabulary take, each run in a
process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..audit import audit
from ..certify import doctor_rows
from ..core.errors import LensError
from ..core.machine import peak_rss_bytes
from ..core.progress import track
from ..core.site import Site
from ..engine.capture import capture, planned
from ..engine.patches import Full
from ..engine.store import kept_capture
from ..engine.task_capture import capture_task
from ..fit.registry import named
from ..model.lens import LensModel, wrap
from ..model.loading import DTYPES, load_model
from ..tasks.named import named_task
from ..tasks.pairset import Pair, PairSet, Prompt
from .tiny import make_loud, tiny_pairs, tiny_tokenizer

SCHEMA = "subspacelens.bench.memory/2"
MANY = 5000
"""Pairs to which long captures are extrapolated."""
QWEN: dict[str, Any] = dict(
    vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
    num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32_768,
    tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
"""The sizes of Qwen2.5-1.5B, as a Llama: 1.54 billion weights."""
GEMMA: dict[str, Any] = dict(
    vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
    num_attention_heads=4, num_key_value_heads=1, head_dim=256, max_position_embeddings=32_768,
    tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
"""The sizes of Gemma 3 270M, as a Llama: most of its weights are its vocabulary."""
RANDOM: dict[str, dict[str, Any]] = {
    "large": dict(
        shape=QWEN, dtype="bfloat16", pairs=8, sites=["L24.mlp_act@NOUN"], doctor=False,
        budget="fast",
    ),
    "wide": dict(
        shape=GEMMA, dtype="float32", pairs=None, sites=["L9.mlp_act@NOUN", "L9.resid_post@NOUN"],
        doctor=True, budget="standard",
    ),
}  # fmt: skip
"""Models of random weights by the name of the part, and what is done with them: at most so many
`pairs` to fit on and to judge on, all with None, and with `doctor` every certificate of it."""
PARTS = ("long", *RANDOM)


def bench_memory(
    model: str = "smollm2",
    *,
    dtype: str = "float32",
    tokens: int = 512,
    pairs: Sequence[int] = (8, 16),
    site: str = "L0.resid_post@END",
    memory: int = 2**27,
    parts: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """Peak resident bytes and seconds of a capture and a replay of so many `pairs` of random tokens
    with `memory` bytes to stay under, kept in memory and kept on disk, and what `MANY` would take:
    their bytes are planned, their seconds extrapolated. Then the steps of an audit of each model of
    `RANDOM`. `parts`: some of `PARTS` alone.

    Raises `LensError` for another part, and for a run that fails, with its last line.

    >>> bench_memory(pairs=[4], parts=["long"])["long"][0]["peak_rss_bytes"]
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise LensError(f"unknown part '{unknown[0]}': one of {', '.join(PARTS)}")
    common = dict(model=model, dtype=dtype, tokens=tokens, site=site, memory=memory)
    jobs: list[dict[str, Any]] = [
        common | dict(kind="long", pairs=count, stored=stored)
        for stored in (False, True)
        for count in (pairs if "long" in parts else ())
    ]
    jobs += [dict(kind="random", name=n) | each for n, each in RANDOM.items() if n in parts]
    runs = [_run(job) for job in track(jobs, "memory")]
    found = [run for job, run in zip(jobs, runs, strict=True) if job["kind"] == "long"]
    return {
        "schema": SCHEMA,
        "cores": os.cpu_count(),
        "tokens": tokens,
        "site": site,
        "memory": memory,
        "long": found,
        "many": [_many(found, stored) for stored in (False, True)] if found else [],
        "random": runs[len(found) :],
    }


def _many(rows: list[dict[str, Any]], stored: bool) -> dict[str, Any]:
    """What `MANY` pairs would take, at the pace of the longest run."""
    last = [row for row in rows if row["stored"] == stored][-1]
    times = MANY / last["pairs"]
    return dict(
        pairs=MANY, stored=stored, kept_bytes=round(last["kept_bytes"] * times),
        capture_seconds=last["capture_seconds"] * times,
        replay_seconds=last["replay_seconds"] * times,
    )  # fmt: skip


def _run(wanted: dict[str, Any]) -> dict[str, Any]:
    line = [sys.executable, "-c", f"from {__name__} import job; job()", json.dumps(wanted)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LensError(f"a run of {wanted['kind']} ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _random_pairs(lens: LensModel, tokens: int, count: int) -> PairSet:
    """Pairs that differ in the middle token alone."""
    rng, size = random.Random(0), len(lens.map.tail.head.weight)
    columns = {"MID": tokens // 2, "END": tokens - 1}

    def pair() -> Pair:
        ids = [rng.randrange(size) for _ in range(tokens)]
        other = [*ids[: tokens // 2], rng.randrange(size), *ids[tokens // 2 + 1 :]]
        base, source = (Prompt("", tuple(each), columns) for each in (ids, other))
        return Pair(base=base, source=source, answer=1, target=2)

    return PairSet("random", "test", tuple(pair() for _ in range(count)))


def _long(job: SimpleNamespace) -> dict[str, Any]:
    lens, site = load_model(job.model, dtype=job.dtype), Site.parse(job.site)
    capture(lens, _random_pairs(lens, 8, 1), [site])
    data, loaded = _random_pairs(lens, job.tokens, job.pairs), peak_rss_bytes()
    kept = sum(planned(lens, data, [site]).nbytes.values())
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        if job.stored:
            captured = kept_capture(lens, data, [site], Path(folder), memory=job.memory)
        else:
            captured = capture(lens, data, [site], memory=job.memory)
        between = time.perf_counter()
        captured.at(site).outcomes(Full())
        end = time.perf_counter()
    return dict(
        pairs=job.pairs, stored=job.stored, kept_bytes=kept, loaded_rss_bytes=loaded,
        peak_rss_bytes=peak_rss_bytes(), capture_seconds=between - begin,
        replay_seconds=end - between,
    )  # fmt: skip


def _random(job: SimpleNamespace) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    begin = time.perf_counter()

    def done(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        steps.append(dict(step=name, seconds=now - begin, peak_rss_bytes=peak_rss_bytes()))
        begin = now

    config = AutoConfig.for_model("llama", **job.shape)
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[job.dtype])
    make_loud(model, torch.Generator().manual_seed(0))
    done("weights drawn")
    lens = wrap(model.eval().requires_grad_(False), tiny_tokenizer(), "random llama")
    done("parts found and proven")
    if job.doctor:
        doctor_rows(lens)
        done("every certificate")
    with tempfile.TemporaryDirectory() as folder:
        task = named_task(
            lens.tokenizer, str(tiny_pairs(Path(folder) / "pairs.jsonl")), pairs=job.pairs
        )
    sites = [Site.parse(site) for site in job.sites]
    captures = capture_task(lens, task, sites)
    done("capture")
    for site in sites:
        captures.test.at(site).effect(Full())
        done(f"replay at {site}")
        subspace = named("closed-form")(lens, captures.train, site)
        done(f"fit at {site}, closed form")
        audit(lens, captures, subspace, budget=job.budget)
        done(f"audit of {site}, --budget {job.budget}")
    weights = sum(parameter.numel() for parameter in model.parameters())
    return dict(
        name=job.name, weights=weights, words=job.shape["vocab_size"], dtype=job.dtype,
        pairs=[len(task.train), len(task.test)], steps=steps,
    )  # fmt: skip


def job() -> None:
    """What a process of its own does: the job in its only argument, told as a line of JSON."""
    wanted = SimpleNamespace(**json.loads(sys.argv[1]))
    print(json.dumps((_long if wanted.kind == "long" else _random)(wanted)))
