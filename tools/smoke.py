"""Whether an installed subspacelens does what it is for, in seconds: run by the Python it is in.

A patch by replay against a full pass with a plain hook, on tiny random models of several
architectures; then pairs, fit, audit and page by the command line. Prints one line a check and
exits with 1 if one failed.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import subspacelens as sl
from subspacelens.bench.tiny import make_loud, tiny_model, tiny_pairs
from subspacelens.model.hooks import first_tensor, with_first
from subspacelens.tasks import Pair, PairSet, Prompt

ROPE = dict(
    hidden_size=32, intermediate_size=56, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=64,
)  # fmt: skip
KINDS = ["sliding_attention", "full_attention"] * 2
FAMILIES = {
    "llama": ROPE | dict(num_key_value_heads=2),
    "qwen3": ROPE | dict(num_key_value_heads=2, head_dim=8),
    "gemma3_text": ROPE
    | dict(num_key_value_heads=2, head_dim=8, sliding_window=5, layer_types=KINDS),
    "gpt2": dict(n_embd=32, n_layer=4, n_head=4, n_positions=64),
    "gpt_neox": ROPE,
    "mixtral": ROPE | dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip
VOCABULARY = 97


def main() -> int:
    parts = ", ".join(
        f"{name} {version(name)}" for name in ("subspacelens", "torch", "transformers")
    )
    print(f"Python {platform.python_version()}, {parts}")
    checks: dict[str, Callable[[], None]] = {
        f"a patch of {family} equals a plain hook": lambda family=family: exact(family)
        for family in FAMILIES
    }
    checks["fit, audit and page by the command line"] = commands
    failed = 0
    for name, check in checks.items():
        try:
            check()
            print(f"ok      {name}")
        except Exception as error:
            traceback.print_exc()
            print(f"FAILED  {name}: {type(error).__name__}: {error}".splitlines()[0])
            failed += 1
    return int(failed > 0)


def exact(family: str) -> None:
    """The stream behind block 1 at column 4, exchanged between two prompts."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    make_loud(model)
    lens = sl.wrap(model.requires_grad_(False), None)
    base, source = torch.randint(3, VOCABULARY, (2, 9)).tolist()
    labels = {"X": 4, "END": 8}
    pair = Pair(
        base=Prompt("", tuple(base), labels), source=Prompt("", tuple(source), labels),
        answer=5, target=6,
    )  # fmt: skip
    effect = sl.patch(lens, PairSet("smoke", "test", (pair,)), "L1.resid_post@X")
    kept: list[torch.Tensor] = []

    def keep(_module, _args, output):
        kept.append(first_tensor(output)[:, 4].clone())

    def write(_module, _args, output):
        hidden = first_tensor(output).clone()
        hidden[:, 4] = kept[0]
        return with_first(output, hidden)

    block = lens.map.blocks[1].module
    logits = []
    for hook, ids in ((keep, source), (write, base)):
        handle = block.register_forward_hook(hook)
        logits.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
        handle.remove()
    plain = float(logits[1][5] - logits[1][6])
    ours = float(effect.patched.logit_diff[0])
    if abs(ours - plain) > 1e-4 * max(1.0, abs(plain)):
        raise AssertionError(f"{ours} is not {plain}")
    if abs(float(effect.drop[0])) < 1e-4:
        raise AssertionError("the patch does nothing")


def commands() -> None:
    """`check`, `fit`, `audit`, `doctor` on a model and pairs on disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, pairs = tiny_model(folder / "model"), tiny_pairs(folder / "pairs.jsonl")
        task = ("--model", model, "--task", pairs, "--site", "L1.mlp_act@END")
        for command in (
            ("--version",),
            ("check", pairs, "--model", model),
            ("doctor", "--model", model),
            ("audit", *task, "--budget", "fast", "--pairs", 24, "--out", folder / "audit"),
        ):
            words = [sys.executable, "-m", "subspacelens", *map(str, command)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise AssertionError(f"{command[0]}: {done.stderr.strip()[-500:]}")
        if not (folder / "audit/report.html").is_file():
            raise AssertionError("no report")


if __name__ == "__main__":
    sys.exit(main())
