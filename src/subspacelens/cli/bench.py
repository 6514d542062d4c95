"""`bench`: the library measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LensError
from ..core.progress import showing_progress
from ..core.site import Site
from ..core.sizes import parse_size
from .options import Device, Dtype, FitOptions, Model, Seed, loaded, writable
from .printing import PlainTable, say

commands = typer.Typer(help="Measure the library on this machine.", no_args_is_help=True)


@commands.command("engine")
def bench_engine_command(
    model: Model = "smollm2",
    device: Device = None,
    dtype: Dtype = "float32",
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PYTHON",
            help="The Python that has the rival NAME, transformer-lens or pyvene; may be repeated.",
        ),
    ] = None,
    install_peers: Annotated[
        bool,
        typer.Option(
            "--install-peers", help="Make what is missing, each an environment in the cache folder."
        ),
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Run every rival to its end, also the slowest.")
    ] = False,
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
    """Time whole fits to the same held-out effect against plain hooks, TransformerLens and pyvene,
    and the engine's steps against hooks and the bare matrix products.

    A rival that neither --peer names nor is installed here is left out, unless --install-peers.
    """

    from ..bench import bench_engine, fits_rows, growth_figure, peer_pythons
    from ..bench.table import FITS_COLUMNS
    from ..core.files import write_atomically

    given = {}
    for text in peer or ():
        name, mark, python = text.partition("=")
        if not mark:
            raise LensError(f"--peer {text}: give NAME=PYTHON")
        given[name] = Path(python)
    with showing_progress():
        pythons = peer_pythons(given, install=install_peers)
        lens = loaded(model, device, dtype)
        result = bench_engine(lens, pythons=pythons, whole=whole, quick=quick)
    _write_json(json_file, result)
    if plot is not None:
        write_atomically(plot, growth_figure(result).to_html(include_plotlyjs=True).encode())
    fits = PlainTable(title="whole fits to 99 % of the best held-out FLDD")
    for heading in FITS_COLUMNS:
        fits.add_column(heading, overflow="fold")
    for row in fits_rows(result):
        fits.add_row(*row)
    fits.show()
    names = ("engine", "hooks", "floor")
    table = PlainTable(title="seconds, and ratios of seconds")
    for heading in ("", *names, "engine / floor", "hooks / engine"):
        table.add_column(heading, overflow="fold")
    rows = {f"step {site}": times for site, times in result["steps"].items()}
    rows["map"] = result["map"]
    for name, times in rows.items():
        engine, hooks, floor = seconds = [times.get(f"{who}_seconds") for who in names]
        ratios = [(engine, floor), (hooks, engine)]
        table.add_row(
            name,
            *("-" if s is None else f"{s:.3f}" for s in seconds),
            *("-" if None in pair else f"{pair[0] / pair[1]:.2f}" for pair in ratios),
        )
    table.show()
    say(f"peak memory: {result['peak_rss_bytes'] / 2**30:.2f} GiB")


@commands.command("profile")
def bench_profile_command(
    model: Model = "smollm2",
    site: Annotated[str, typer.Option(help="Where the direction is trained.")] = "L18.mlp_act@S2",
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Show where the time of a training step of the engine goes, by operation."""
    from ..bench import profile_step

    where = Site.parse(site)
    with showing_progress():
        shares = profile_step(loaded(model, device, dtype), where)
    table = PlainTable("operation", "share", title=f"a step at {where}")
    for name, share in list(shares.items())[:20]:
        table.add_row(name, f"{share:.1%}")
    table.show()


@commands.command("facts")
def bench_facts_command(
    model: Model = "smollm2",
    layer: Annotated[
        list[int] | None,
        typer.Option(help="Where the directions are; may be given several times."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Pairs, each with a direction of its own.")] = 16,
    steps: Annotated[int, typer.Option(help="Gradient steps.")] = 30,
    device: Device = None,
    dtype: Dtype = "float32",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
) -> None:
    """Time the fit of one direction a pair: batched replay against one full pass a pair and step,
    and against the bare matrix products of what is replayed.

    Plain hooks and products run three steps and are scaled to the whole. The error is in nats.
    """

    from ..bench import bench_facts
    from ..core.errors import LensError
    from ..tasks.facts import embedded_facts

    if min(pairs, steps) < 1:
        raise LensError("--pairs and --steps: at least 1")
    with showing_progress():
        lens = loaded(model, device, dtype)
        count = len(lens.map.blocks)
        layers = layer or [0, count // 3, 2 * count // 3]
        timings = bench_facts(lens, embedded_facts(), layers, pairs=pairs, steps=steps)
    _write_json(json_file, timings)
    table = PlainTable(
        "site",
        "pairs",
        "steps",
        "hooks, s",
        "replay, s",
        "floor, s",
        "faster",
        "error",
    )
    numbers = ("hooks_seconds", "replay_seconds", "floor_seconds", "speedup")
    for row in timings:
        seconds = (f"{row[name]:.1f}" for name in numbers)
        table.add_row(
            row["site"], str(row["pairs"]), str(row["steps"]), *seconds, f"{row['error']:.0e}"
        )
    table.show()


@commands.command("commands")
def bench_commands_command(
    command: Annotated[
        list[str] | None,
        typer.Option(
            help="One of help, doctor, map, instant, audit, given, ioi, facts, editing; "
            "may be given several times. By default all."
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each; the median counts.")] = 3,
    before: Annotated[
        str | None,
        typer.Option(help="The Python of an environment with another version, to compare with."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
) -> None:
    """Time whole commands, as a user types them, each in an empty folder."""
    import sys

    from ..bench import bench_commands
    from ..bench.commands import COMMANDS

    pythons = ({"before": before} if before else {}) | {"now": sys.executable}
    with showing_progress():
        result = bench_commands(command or tuple(COMMANDS), repeat=repeat, pythons=pythons)
    _write_json(json_file, result)
    table = PlainTable("command", "version", "seconds, median", "all")
    for row in result["rows"]:
        runs = ", ".join(f"{seconds:.1f}" for seconds in row["seconds"])
        table.add_row(row["command"], row["python"], f"{row['median']:.2f}", runs)
    table.show()


@commands.command("coverage")
def bench_coverage_command(
    repeat: Annotated[int, typer.Option(min=1, help="Samples of each size.")] = 2000,
    seed: Seed = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
) -> None:
    """Simulate how often the library's 95 % intervals hold the truth."""

    from ..bench import bench_coverage
    from ..bench.coverage import COUNTS

    with showing_progress():
        result = bench_coverage(repeat, seed)
    _write_json(json_file, result)
    table = PlainTable("interval", *(f"{count} units" for count in COUNTS))
    for start in range(0, len(result["rows"]), len(COUNTS)):
        rows = result["rows"][start : start + len(COUNTS)]
        table.add_row(rows[0]["case"], *(_coverage(row) for row in rows))
    table.show()


def _coverage(row: dict) -> str:
    covered = "-" if row["covered"] is None else f"{row['covered']:.3f}"
    return covered if not row["unbounded"] else f"{covered} ({row['unbounded']:.0%} none)"


@commands.command("fits")
def bench_fits_command(
    model: Model = "smollm2",
    device: Device = None,
    dtype: Dtype = "float32",
    quick: Annotated[
        bool, typer.Option("--quick", help="Try it out; numbers of no worth.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
) -> None:
    """Compare DAS by L-BFGS from the closed form with the usual recipe (Adam, 120 steps): what
    either finds on held-out IOI pairs, in how many passes over the training pairs and seconds.

    The cosine is that of the largest angle between the two subspaces.
    """

    from ..bench import bench_fits

    with showing_progress():
        result = bench_fits(loaded(model, device, dtype), quick=quick)
    _write_json(json_file, result)
    table = PlainTable(
        "site", "dim", "FLDD", "ratio", "cosine", "passes", "seconds",
        title="L-BFGS, Adam",
    )  # fmt: skip
    for row in result["rows"]:
        recipes = row["lbfgs"], row["adam"]
        table.add_row(
            row["site"],
            str(row["dim"]),
            ", ".join("-" if each["fldd"] is None else f"{each['fldd']:.3f}" for each in recipes),
            "-" if row["ratio"] is None else f"{row['ratio']:.3f}",
            f"{row['cosine']:.3f}",
            ", ".join(f"{each['passes']:.0f}" for each in recipes),
            ", ".join(f"{each['seconds']:.1f}" for each in recipes),
        )
    table.show()


@commands.command("instant")
def bench_instant_command(
    model: Model = "smollm2",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task as for `audit`; may be given several times. By default ioi, agreement and "
            "pronoun."
        ),
    ] = None,
    sites: Annotated[int, typer.Option(min=1, help="Sites of each task.")] = 64,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs to fit on, and to judge on.")] = 64,
    fit_option: FitOptions = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    quick: Annotated[
        bool, typer.Option("--quick", help="Try it out; numbers of no worth.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench-instant"),
) -> None:
    """Judge the instant map against fitted DAS and the replayed whole component.

    Writes OUT/bench-instant.json, OUT/instant.md and OUT/calibration.html, and every site when it
    is done: the same command goes on where it was stopped. Takes as long as its DAS fits.
    """
    import json

    from ..bench import JUDGED, bench_instant, calibration_figure, instant_table
    from ..core.files import write_atomically
    from ..fit import named
    from ..tasks.named import named_task

    given = (text.partition("=") for text in fit_option or ())
    options = named("das").read_options({key: value for key, _, value in given})
    if quick:
        sites, pairs = min(sites, 6), min(pairs, 8)
    writable(out)
    with showing_progress():
        lens = loaded(model, device, dtype)
        tasks = [named_task(lens.tokenizer, name, pairs=pairs) for name in task or JUDGED]
        result = bench_instant(
            lens, tasks, out, sites=sites, pairs=pairs, options=options, seed=seed
        )
    table, picture = instant_table(result), calibration_figure(result)
    write_atomically(out / "bench-instant.json", json.dumps(result, indent=1).encode())
    write_atomically(out / "instant.md", table.encode())
    write_atomically(out / "calibration.html", picture.to_html(include_plotlyjs=True).encode())
    say(table)


@commands.command("memory")
def bench_memory_command(
    model: Model = "smollm2",
    dtype: Dtype = "float32",
    tokens: Annotated[int, typer.Option(min=4, help="Tokens of each prompt.")] = 512,
    pairs: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Pairs to capture; may be given several times. By default 8, 16."),
    ] = None,
    site: Annotated[str, typer.Option(help="Where.")] = "L0.resid_post@END",
    memory: Annotated[
        str, typer.Option(help="What is not to be passed by a replay, and by what is kept.")
    ] = "128MiB",
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="`long`: captures of long prompts; `large`: audit of a model of random weights "
            "with the sizes of Qwen2.5-1.5B, in bfloat16; `wide`: certificates and audits of one "
            "with those of Gemma 3 270M. May be given several times. By default all."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
) -> None:
    """Measure the memory and time of long captures, in memory and on disk, of a model of 1.5
    billion weights, and of one with a vocabulary of 262,144 words.

    What 5,000 pairs would take is printed too: the bytes that are kept are planned, the seconds
    extrapolated from the longest run. Pairs are random tokens.
    """
    from ..bench import bench_memory
    from ..bench.memory import PARTS
    from ..core.format import duration
    from ..core.format import memory as size

    with showing_progress():
        result = bench_memory(
            model, dtype=dtype, tokens=tokens, pairs=pairs or (8, 16), site=str(Site.parse(site)),
            memory=parse_size(memory), parts=part or PARTS,
        )  # fmt: skip
    _write_json(json_file, result)
    table = PlainTable(
        "pairs", "kept", "on", "peak memory", "of it the model", "capture", "a replay",
        title=f"captures of {tokens} tokens at {site}",
    )  # fmt: skip
    for row in result["long"] + result["many"]:
        peaks = (row.get(name) for name in ("peak_rss_bytes", "loaded_rss_bytes"))
        table.add_row(
            f"{row['pairs']:,}",
            size(row["kept_bytes"]),
            "disk" if row["stored"] else "memory",
            *("-" if peak is None else size(peak) for peak in peaks),
            duration(row["capture_seconds"]),
            duration(row["replay_seconds"]),
        )
    if result["long"]:
        table.show()
    for one in result["random"]:
        table = PlainTable(
            "step", "seconds", "peak memory",
            title=f"{one['weights'] / 1e9:.2f} billion random weights, {one['words']:,} words, "
            f"{one['dtype']}, {one['pairs'][0]} and {one['pairs'][1]} pairs",
        )  # fmt: skip
        for row in one["steps"]:
            table.add_row(row["step"], f"{row['seconds']:.1f}", size(row["peak_rss_bytes"]))
        table.show()


@commands.command("crash")
def bench_crash_command(
    local: Annotated[int, typer.Option(min=0, help="Kills of the local runner.")] = 100,
    ray: Annotated[int, typer.Option(min=0, help="Kills on a Ray cluster of two nodes.")] = 20,
    seed: Seed = 0,
) -> None:
    """Kill sweeps of small cells at random moments and count what is lost: nothing may be.

    Exits with 1 if anything was lost, changed, written twice or left half-written.
    """
    from ..bench.crash import TARGETS, crash_local, crash_ray

    with showing_progress():
        reports = {"local": crash_local(local, seed)} if local else {}
        if ray:
            reports["ray"] = crash_ray(ray, seed)
    counts = ("lost", "changed", "rewritten", "damaged", "orphans")
    table = PlainTable("", *reports)
    for target in TARGETS:
        table.add_row(f"kills: {target}", *(str(r.kills[target]) for r in reports.values()))
    table.add_row("sweeps x cells", *(f"{r.rounds} x {r.cells}" for r in reports.values()))
    for count in counts:
        table.add_row(count, *(str(getattr(report, count)) for report in reports.values()))
    table.add_row("seconds", *(f"{report.seconds:.0f}" for report in reports.values()))
    table.show()
    if not all(report.passed for report in reports.values()):
        raise typer.Exit(1)


def _write_json(path: Path | None, result: object) -> None:
    import json

    from ..core.files import write_atomically

    if path is not None:
        write_atomically(path, json.dumps(result, indent=1).encode())
