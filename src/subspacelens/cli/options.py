"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import LensError, ResultError, SiteError, SubspaceError
from ..core.progress import bar
from ..core.site import Site, check_stream
from ..core.sizes import parse_size

if TYPE_CHECKING:
    from ..fit.subspace import Subspace

MAIN_SITES = ("L18.mlp_act@S2", "L17.resid_post@S2")


Model = Annotated[
    str,
    typer.Option(
        help="An embedded model (see `subspacelens models`), a hub id, a folder in hub layout, or "
        "a .gguf file."
    ),
]
TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        help="`ioi`, `agreement`, `pronoun`, `animacy`, `sentiment`, `food`, `warmth`, or a JSON "
        "Lines file of base/source pairs.",
    ),
]
TestPairs = Annotated[
    Path | None, typer.Option(help="Pairs to judge on, for a task given as a file.")
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        help="Where: L<layer>.<stream>@<label>, such as L18.mlp_act@S2 or L9.head_z.3@END, or as "
        "TransformerLens or a path of modules has it, such as blocks.18.mlp.hook_post@S2; may be "
        f"given several times. By default, for smollm2 on ioi: {' and '.join(MAIN_SITES)}.",
    ),
]
FitName = Annotated[
    str,
    typer.Option(
        "--fit",
        help="How the subspace is found (see `subspacelens fits`).",
    ),
]
FitOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--fit-option",
        help="An option of that fit and its value, such as recipe=adam (see `subspacelens fits`); "
        "may be given several times.",
    ),
]
Dim = Annotated[
    str,
    typer.Option(
        help="Dimensions of the subspace; or `auto`: the fewest of 1, 2, 4 and 8 that do within "
        ".02 (FLDD) of the best on a third of the training pairs, which the fit does not see then."
    ),
]
AUTO = "auto"
Pairs = Annotated[
    int | None, typer.Option(help="Use at most this many pairs to fit and to judge on.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same numbers.")]
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
BudgetName = Annotated[
    str,
    typer.Option(
        "--budget",
        help="`fast`: what the verdict rests on; `standard`: all tests of the given subspace; "
        "`full`: it is fitted again too, on halves of the data and to shuffled labels.",
    ),
]
Tests = Annotated[
    str | None,
    typer.Option(help="Run these tests only, by name, separated by commas."),
]
Controls = Annotated[
    bool | None,
    typer.Option(
        "--controls/--no-controls",
        help="Plant faithful and illusory subspaces at the very site and audit them blind, to see "
        "how often the audit is right there. By default under `--budget full`.",
    ),
]
Captures = Annotated[
    Path | None,
    typer.Option(
        help="Folder in which the activations of the prompts are kept, and taken from when the "
        "same pairs, sites and model come again. What is larger than --memory, or half of what is "
        "free, stays there and is replayed from there."
    ),
]
Shifted = Annotated[
    bool,
    typer.Option(
        "--shifted",
        help="Allow labels in different columns of base and source (END may be always).",
    ),
]
Skip = Annotated[
    bool,
    typer.Option(
        "--skip",
        help="Leave out lines of the file that cannot be read as a pair, and pairs that do not fit "
        "the model, such as ones longer than its context, or a site, as where a token is not sent "
        "to the expert; how many is said.",
    ),
]

Answers = Annotated[
    str,
    typer.Option(
        help="What of longer answers is compared: `whole`, or `first`, the first token where they "
        "part."
    ),
]
MetricName = Annotated[
    str,
    typer.Option(
        "--metric",
        help="What the tests compare: `logit_diff`, `target_logprob`, `target_prob`, "
        "`kl_to_source` or `target_rank`.",
    ),
]
OnlyCorrect = Annotated[
    bool,
    typer.Option("--only-correct", help="Leave out pairs that the model itself does not answer."),
]


def prepared(
    model: str, task: str, test_pairs: Path | None, pairs: int | None, seed: int,
    device: str | None, dtype: str, *, only: bool = False, skip: bool = False,
    answers: str = "whole",
):  # fmt: skip
    """The model and the task; `only` the pairs that the model answers. `skip` leaves out what
    cannot be read. `answers`: see `named_task`."""
    from ..engine.fitting_prompts import fitting
    from ..engine.recall import only_correct
    from ..tasks.named import check_task, named_task

    check_task(task, test_pairs, pairs, answers, skip)
    lens = loaded(model, device, dtype)
    chosen = named_task(
        lens.tokenizer, task, test_pairs, pairs=pairs, seed=seed, skip=skip, answers=answers
    )
    if skip:
        chosen = fitting(lens, chosen)
    return lens, only_correct(lens, chosen) if only else chosen


def loaded(model: str, device: str | None, dtype: str):
    """The model, with a line that says so while it loads."""
    from ..model.loading import load_model

    with bar(f"load {model}", 1) as move:
        lens = load_model(model, device=device, dtype=dtype)
        move(1, f"load {model}")
    return lens


def located_file(path: Path) -> Path:
    """A file or folder of this machine, or of the hub. Raises `SubspaceError` where it is not
    there."""
    from ..interop.hub import located

    found = located(path)
    if not found.exists():
        raise SubspaceError(f"{path}: there is no such file or folder")
    return found


def given_subspace(
    lens, path: Path, sites: list[str] | None, key: str | None, row: int | None,
    latents: list[int] | None = None, centred: bool = False,
):  # fmt: skip
    """The subspace in a file or a folder that is there (`located_file`): ours, another tool's, or a
    plain array, which does not say where it belongs."""
    from ..fit import given
    from ..fit.foreign import from_foreign
    from ..fit.subspace import Subspace
    from ..interop import recognised
    from ..interop.names import site_named

    if sites and len(sites) > 1:
        raise SiteError(f"{path} holds one subspace: give one --site, not {len(sites)}")
    text = sites[0] if sites else None
    found = None if Subspace.is_ours(path) else recognised(path)
    if found is not None:
        rows = [*(latents or ()), *(() if row is None else (row,))]
        return from_foreign(lens, found, text, key=key, rows=rows, centred=centred)
    if latents or centred:
        raise LensError(f"{path}: --latent and --centred are for files of other tools")
    site = site_named(text, lens) if text else None
    ours = Subspace.is_ours(path) or (site is None and path.suffix == ".safetensors")
    if key is None and row is None and ours:
        return Subspace.load(path, lens, site)
    if site is None:
        raise SiteError(f"{path} does not say where it belongs: name its --site")
    return given(lens, site, path, key=key, row=row)


def check_sites(texts: list[str] | None) -> None:
    """What of `--site` can be refused before the model is there. Raises `SiteError`."""
    from ..interop.names import is_ours

    for text in texts or ():
        if is_ours(text):
            Site.parse(text)


def check_streams(names: list[str] | None) -> None:
    """What of `--stream` can be. Raises `SiteError`."""
    for name in names or ():
        check_stream(name, "--stream: ")


def sites_of(texts: list[str] | None, model: str, task: str, lens=None) -> list[Site]:
    from ..interop.names import site_named

    if texts:
        return list(dict.fromkeys(site_named(text, lens) for text in texts))
    if (model, task) == ("smollm2", "ioi"):
        return [Site.parse(text) for text in MAIN_SITES]
    raise SiteError("no site: say where with --site, such as --site L5.resid_post@END")


def dim_of(text: str) -> int | None:
    """`--dim`; None for `auto`. Raises `LensError` where it is neither that nor a number."""
    if text == AUTO:
        return None
    try:
        dim = int(text)
    except ValueError:
        dim = 0
    if dim < 1:
        raise LensError(f"--dim {text[:40]}: a number of dimensions, or {AUTO}")
    return dim


def chosen_fit(
    name: str, options: list[str] | None, dim: int | None, seed: int
) -> Callable[..., Subspace]:
    """The fit of that name with its settings, a function of (captured, site); where `dim` is None
    the number of dimensions is chosen on pairs of the capture that the fit does not see.

    Raises `SubspaceError` for an unknown name, an option that the fit lacks, or a bad value.
    """
    from ..fit import auto_dim, named

    fit = named(name)
    texts = (text.partition("=") for text in options or ())
    settings: dict[str, Any] = fit.read_options({key: value for key, _, value in texts})
    settings["seed"] = seed

    def find(captured, site: Site) -> Subspace:
        if dim is None:
            return auto_dim(fit, captured, site, **settings).subspace
        return fit(captured.lens, captured, site, dim=dim, **settings)

    return find


def fit_settings(
    name: str, options: list[str] | None, dim: int | None, seed: int, task
) -> dict[str, object]:
    """What the subspaces of `chosen_fit` say of themselves, as far as that is known before."""
    from ..fit import named
    from ..fit.dimensions import divided

    fit = named(name)
    texts = (text.partition("=") for text in options or ())
    settings = fit.options | fit.read_options({key: value for key, _, value in texts})
    known: dict[str, object] = {k: value for k, value in settings.items() if value is not None}
    known |= {"method": name, "seed": seed}
    if dim is not None:
        return known | {"dim": dim}
    return known | {"pairs": task.train.at(divided(task.train)[0]).sha256}


def bytes_of(memory: str | None) -> int | None:
    """`--memory` in bytes; raises `LensError` where it is not a size."""
    if memory is None:
        return None
    try:
        return parse_size(memory)
    except LensError as error:
        raise LensError(f"--memory: {error}") from None


def writable(out: Path) -> None:
    """Fails now rather than after the work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".subspacelens-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResultError(f"--out {out} cannot be written: {error.strerror}") from None


def command_line() -> str:
    return shlex.join(["subspacelens", *sys.argv[1:]])
