"""An example for the help of every command."""

from __future__ import annotations

from collections.abc import Mapping

import typer

EXAMPLES: Mapping[str, str] = {
    "audit": "subspacelens audit --model gpt2 --task pairs.jsonl --site L8.mlp_act@END",
    "fit": "subspacelens fit --model gpt2 --task pairs.jsonl --site L8.resid_post@END --fit pca",
    "find": "subspacelens find --task pairs.jsonl --model ./my-model --budget fast",
    "patch": "subspacelens patch --task ioi --site L17.resid_post@S2 --site L20.attn_out@END",
    "map": "subspacelens map --model ./my-model --task pairs.jsonl",
    "check": "subspacelens check pairs.jsonl --model ./my-model",
    "pairs": "subspacelens pairs names.csv --column base=clean --column source=corrupted "
    "--label NAME=name --out pairs.jsonl",
    "inspect": "subspacelens inspect found/intervention",
    "export": "subspacelens export found/subspace.safetensors --to pyvene --out found/pyvene",
    "doctor": "subspacelens doctor --model gpt2 --site L8.mlp_act@END",
    "models": "subspacelens models",
    "fits": "subspacelens fits",
    "report": "subspacelens report runs",
    "survey": "subspacelens survey --model gpt2 --task pairs.jsonl --instant",
    "sweep": "subspacelens sweep grid.toml --out runs/sweep --dry-run",
    "results": "subspacelens results runs/sweep --where 'subspace_fldd > 0.3' --csv table.csv",
    "facts known": "subspacelens facts known --model gpt2 --limit 200 --out known.json",
    "reproduce toy": "subspacelens reproduce toy",
    "reproduce ioi": "subspacelens reproduce ioi --quick",
    "reproduce facts": "subspacelens reproduce facts --quick",
    "reproduce editing": "subspacelens reproduce editing --quick",
    "reproduce prevalence": "subspacelens reproduce prevalence --no-das",
    "reproduce all": "subspacelens reproduce all --plan",
    "bench engine": "subspacelens bench engine --quick",
    "bench profile": "subspacelens bench profile --site L18.mlp_act@S2",
    "bench audit": "subspacelens bench audit --task agreement --places 1",
    "bench facts": "subspacelens bench facts --pairs 8",
    "bench commands": "subspacelens bench commands --repeat 1",
    "bench constraints": "subspacelens bench constraints --places 0",
    "bench coverage": "subspacelens bench coverage --repeat 500",
    "bench find": "subspacelens bench find --model mlp --budget fast",
    "bench fits": "subspacelens bench fits --quick",
    "bench instant": "subspacelens bench instant --quick",
    "bench memory": "subspacelens bench memory --pairs 8",
    "bench crash": "subspacelens bench crash --local 10 --ray 0",
}


def add_examples(app: typer.Typer, prefix: str = "") -> None:
    """Puts its example under the help of every command of `app` and of its groups."""
    for command in app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        example = EXAMPLES.get(f"{prefix}{name}")
        command.epilog = example and f"Example:\n\n\b\n  {_folded(example)}"
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, f"{prefix}{group.name} ")


def _folded(example: str, width: int = 74) -> str:
    """Broken before options, as a shell reads it."""
    lines = [""]
    for word in example.split(" "):
        if len(lines[-1]) + len(word) > width:
            lines[-1] += "\\"
            lines.append("    ")
        lines[-1] += f"{word} "
    return "\n  ".join(line.rstrip() for line in lines)
