"""The memory bench on a tiny model: what it counts is there, and what it scales is said."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from subspacelens.bench import bench_memory, memory
from subspacelens.core.errors import LensError

SMALL = dict(
    vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8,
)  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    """Runs in this process, as they would be in their own."""
    jobs = []

    def run(job):
        jobs.append(json.loads(json.dumps(job)))
        return (memory._long if job["kind"] == "long" else memory._random)(SimpleNamespace(**job))

    monkeypatch.setattr(memory, "_run", run)
    return jobs


def test_long_captures_and_what_many_would_take(here, place):
    found = bench_memory(
        str(place / "model"),
        tokens=12,
        pairs=[2, 4],
        site="L1.resid_post@MID",
        memory=1,
        parts=["long"],
    )
    assert [(row["pairs"], row["stored"]) for row in found["long"]] == [
        (2, False), (4, False), (2, True), (4, True),
    ]  # fmt: skip
    # Blocks 2 and 3, keys and values, 2 heads of 8, 6 columns; 6 columns and 2 activations of 32.
    pair = 4 * (2 * 2 * 16 * 6 + 6 * 32 + 2 * 32)
    assert [row["kept_bytes"] for row in found["long"]] == [2 * pair, 4 * pair] * 2
    assert all(row["peak_rss_bytes"] >= row["loaded_rss_bytes"] > 2**20 for row in found["long"])
    last, many = found["long"][-1], found["many"][-1]
    assert (many["pairs"], many["stored"], many["kept_bytes"]) == (5000, True, 5000 * pair)
    assert many["capture_seconds"] == pytest.approx(last["capture_seconds"] * 1250)
    assert found["random"] == [] and len(here) == 4


@pytest.mark.parametrize("part, dtype", [("large", "bfloat16"), ("wide", "float32")])
def test_a_model_of_random_weights_is_audited(here, part, dtype, monkeypatch):
    asked = memory.RANDOM[part]
    small = dict(shape=asked["shape"] | SMALL, sites=["L1.mlp_act@NOUN"])
    monkeypatch.setitem(memory.RANDOM, part, asked | small)
    (found,) = bench_memory(parts=[part])["random"]
    assert found["dtype"] == dtype and found["words"] == 97
    assert found["pairs"] == {"large": [8, 8], "wide": [112, 56]}[part]
    steps = [row["step"] for row in found["steps"]]
    assert steps[-1] == f"audit of L1.mlp_act@NOUN, --budget {asked['budget']}"
    assert ("every certificate" in steps) == (part == "wide")
    assert all(row["seconds"] > 0 for row in found["steps"])
    width, inner = 32, 56
    block = 2 * width * width + 2 * width * 16 + 3 * width * inner + 2 * width
    assert found["weights"] == 97 * width + 4 * block + width


def test_an_unknown_part():
    with pytest.raises(LensError, match=r"^unknown part 'wider': one of long, large, wide$"):
        bench_memory(parts=["wider"])


def test_a_run_that_fails_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LensError, match=r"^a run of long ended with exit code 1: [^\n]*no/where"):
        memory._run(dict(kind="long", model="no/where", dtype="float32", site="L0.resid_post@END"))
