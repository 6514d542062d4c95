"""Hostile files and the judge of a command that was given one."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

SECONDS = 30
"""A command that takes longer hangs."""

PAIR = {
    "base": "Then, Monica and Christine met. Christine gave it to",
    "source": "Then, Christine and Monica met. Christine gave it to",
    "answer": " Monica",
    "target": " Christine",
}

FACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "{} is in",
        "relation_id": "P1",
        "subject": "Monica",
        "target_true": {"str": "Christine"},
        "target_new": {"str": "Monica"},
    },
}


NAMES = ("Adam", "Alan", "Albert", "Alex", "Alice", "Amanda", "Amy", "Andrea", "Andrew", "Angela",
         "Anna", "Anthony", "Arthur", "Barbara", "Benjamin", "Brian")  # fmt: skip


def pairs(label: str, first: int = 6, last: int = 15) -> list[dict]:
    """Eight good pairs whose prompts carry `label` at the characters `first` to `last`."""
    lines = []
    for a, b in zip(NAMES[::2], NAMES[1::2], strict=True):
        texts = [f"Then, {x} and {y} met. {y} gave it to" for x, y in ((a, b), (b, a))]
        span = {"base": [first, last], "source": [first, last]}
        lines.append(
            {"base": texts[0], "source": texts[1], "answer": f" {a}", "target": f" {b}",
             "tokens": {label: span}}
        )  # fmt: skip
    return lines


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch /tmp/subspacelens-attack-was-run",))


class Hang(BaseException):
    """Raised into a command that takes too long; no `except Exception` stops it."""


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def pt(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them; files with them stay
        return torch.quantize_per_tensor(torch.ones(56), 0.1, 0, torch.qint8)


def bomb_npy(rows: int) -> bytes:
    """The header of an array of `rows` x 56 without its data."""
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, 56), }}".encode()
    head += b" " * (118 - len(head) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def bomb_npz() -> bytes:
    """A hundred megabytes of zeros in a hundred kilobytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("v.npy", npy(np.zeros((25_000, 1_000), np.float32)))
    return buffer.getvalue()


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def jsonl(*lines: object) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


def deep(open_: str, close: str, levels: int = 100_000) -> bytes:
    return (open_ * levels + close * levels).encode()


NOISE = bytes(range(256)) * 8

SUBSPACES: dict[str, bytes] = {
    "empty.npy": b"",
    "noise.npy": NOISE,
    "object.npy": npy(np.array([Bomb()], dtype=object)),
    "pickle.npy": pickle.dumps(Bomb()),
    "header.npy": bomb_npy(10**12),
    "text.npy": npy(np.array(["a"] * 56)),
    "dates.npy": npy(np.zeros(56, "M8[s]")),
    "records.npy": npy(np.zeros(56, [("a", "f4"), ("b", "f4")])),
    "bool.npy": npy(np.ones(56, bool)),
    "complex.npy": npy(np.ones(56, complex)),
    "nan.npy": npy(np.full(56, np.nan)),
    "inf.npy": npy(np.full(56, np.inf)),
    "zero.npy": npy(np.zeros(56)),
    "scalar.npy": npy(np.array(3.0)),
    "none.npy": npy(np.zeros((0, 56))),
    "cube.npy": npy(np.zeros((56, 2, 2))),
    "many.npy": npy(np.random.default_rng(0).normal(size=(56, 57))),
    "narrow.npy": npy(np.ones(55)),
    "twice.npy": npy(np.ones((56, 2))),
    "empty.npz": b"",
    "noise.npz": NOISE,
    "bare.npz": npz(),
    "two.npz": npz(a=np.ones(56), b=np.ones(56)),
    "bomb.npz": bomb_npz(),
    "not_zip.npz": npy(np.ones(56)),
    "empty.pt": b"",
    "noise.pt": NOISE,
    "bomb.pt": pickle.dumps(Bomb()),
    "bomb_zip.pt": pt({"v": Bomb()}),
    "text.pt": pt("just text"),
    "list.pt": pt([torch.ones(56)]),
    "sparse.pt": pt(torch.ones(56).to_sparse()),
    "quantised.pt": pt(quantised()),
    "meta.pt": pt(torch.ones(56, device="meta")),
    "nested.pt": pt({"a": {"b": torch.ones(56)}}),
    "keys.pt": pt({None: torch.ones(56), 1: torch.ones(56), "a": torch.ones(3)}),
    "empty.safetensors": b"",
    "noise.safetensors": NOISE,
    "length.safetensors": struct.pack("<Q", 2**63),
    "list.safetensors": safetensors([]),
    "deep.safetensors": safetensors(deep("[", "]", 10_000)),
    "outside.safetensors": safetensors(
        {"basis": {"dtype": "F32", "shape": [56], "data_offsets": [0, 10**9]}}
    ),
    "overlap.safetensors": safetensors(
        {n: {"dtype": "F32", "shape": [56], "data_offsets": [0, 224]} for n in "ab"}, bytes(224)
    ),
    "fp8.safetensors": save({"v": torch.ones(56).to(torch.float8_e4m3fn)}),
    "halves.safetensors": save({"v": torch.full((56, 2), 1e-30)}),
    "marked.safetensors": save({"basis": torch.ones(56, 1)}, {"format": "subspacelens.subspace/1"}),
    "damaged.safetensors": save(
        {"basis": torch.eye(56)[:, :1].contiguous()},
        {
            "format": "subspacelens.subspace/1", "site": "[/b]", "model": "\x1b[31m", "fit": "{",
            "weights_sha256": "", "dtype": "", "data_sha256": "",
        },
    ),
    "fit_list.safetensors": save(
        {"basis": torch.eye(56)[:, :1].contiguous()},
        {
            "format": "subspacelens.subspace/1", "site": "L1.mlp_act@S2", "model": "[/b]",
            "fit": "[]", "weights_sha256": "0" * 64, "dtype": "float32", "data_sha256": "",
        },
    ),
    "v.csv": b"1,2,3\n",
    "v": b"",
}  # fmt: skip

PAIRS: dict[str, bytes] = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n  \n",
    "noise.jsonl": NOISE,
    "latin.jsonl": b'{"base": "\xe9"}\n',
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(*pairs("S")),
    "utf16.jsonl": json.dumps(PAIR).encode("utf-16"),
    "nul.jsonl": jsonl(PAIR | {"base": "a\0b"}, PAIR),
    "half.jsonl": b'{"base": "\\ud800", "source": "b", "answer": " Monica", "target": " Mary"}\n',
    "deep.jsonl": deep("[", "]") + b"\n",
    "deep_object.jsonl": deep('{"a":', "}", 50_000) + b"\n",
    "digits.jsonl": jsonl(b'{"z": ' + b"9" * 5000 + b"}"),
    "nan.jsonl": jsonl(PAIR | {"z": float("nan")}),
    "array.jsonl": jsonl([PAIR]),
    "null.jsonl": jsonl(None, 3, "text"),
    "missing.jsonl": jsonl({"base": "a"}),
    "numbers.jsonl": jsonl(PAIR | {"base": 3}),
    "empty_text.jsonl": jsonl(PAIR | {"base": "", "source": ""}),
    "equal.jsonl": jsonl(PAIR | {"source": PAIR["base"]}),
    "same_answers.jsonl": jsonl(PAIR | {"target": PAIR["answer"]}),
    "unequal.jsonl": jsonl(PAIR, PAIR | {"source": "Then, Monica met"}),
    "long.jsonl": jsonl(PAIR | {"base": "Then, " * 5000, "source": "Then, " * 5000}),
    "markup.jsonl": jsonl(PAIR | {"answer": "[/b]"}),
    "ansi.jsonl": jsonl(PAIR | {"answer": "\x1b[31m"}),
    "tokens_list.jsonl": jsonl(PAIR | {"tokens": []}),
    "tokens_text.jsonl": jsonl(PAIR | {"tokens": {"S": "x"}}),
    "tokens_far.jsonl": jsonl(*pairs("S", 500, 510)),
    "tokens_huge.jsonl": jsonl(*pairs("S", 10**30, 10**31)),
    "tokens_minus.jsonl": jsonl(*pairs("S", -5, -1)),
    "label_long.jsonl": jsonl(*pairs("S" * 300)),
    "label_star.jsonl": jsonl(*pairs("*")),
    "label_empty.jsonl": jsonl(*pairs("")),
    "label_ansi.jsonl": jsonl(*pairs("\x1b[31m")),
    "label_markup.jsonl": jsonl(*pairs("[b]")),
    "label_slash.jsonl": jsonl(*pairs("../../x")),
    "label_dots.jsonl": jsonl(*pairs("..")),
    "label_half.jsonl": jsonl(*pairs("\ud800")),
    "good.jsonl": jsonl(*pairs("S")),
    "[red]pairs[/b].jsonl": jsonl(*pairs("S")),
    "one.jsonl": jsonl(PAIR),
    "no.json": b"",
    "list.json": b"[]",
}

FACTS: dict[str, bytes] = {
    "facts_empty.json": b"",
    "facts_noise.json": NOISE,
    "facts_deep.json": deep("[", "]"),
    "facts_object.json": b"{}",
    "facts_none.json": b"[]",
    "facts_null.json": b"[null]",
    "facts_numbers.json": b"[1, 2]",
    "facts_digits.json": b"[" + b"9" * 5000 + b"]",
    "facts_no_blank.json": json.dumps(
        [FACT | {"requested_rewrite": FACT["requested_rewrite"] | {"prompt": "no blank"}}]
    ).encode(),
    "facts_format.json": json.dumps(
        [FACT | {"requested_rewrite": FACT["requested_rewrite"] | {"prompt": "{} {0} {x}"}}]
    ).encode(),
    "facts_types.json": json.dumps(
        [FACT | {"requested_rewrite": FACT["requested_rewrite"] | {"target_true": "x"}}]
    ).encode(),
}

GRIDS: dict[str, bytes] = {
    "empty.toml": b"",
    "noise.toml": NOISE,
    "deep.toml": b"a = " + deep("[", "]"),
    "dotted.toml": b"a" + b".a" * 2_000 + b" = 1",
    "digits.toml": b"seeds = [" + b"9" * 5000 + b"]",
    "latin.toml": b"models = ['\xe9']",
    "unknown.toml": b"colour = 3",
    **{
        f"grid_{name}.toml": (
            'models = ["{tiny}"]\ntasks = ["ioi"]\nsites = ["L1.mlp_act@S2"]\npairs = 8\n'
            'fits = ["random"]\nkind = "fit"\n' + line
        ).encode()
        for name, line in {
            "seed_huge": f"seeds = [{2**64}]",
            "seed_negative": "seeds = [-1]",
            "task_seed_negative": "task_seed = -1",
            "task_seed_huge": f"task_seed = {2**64}",
            "threads": "threads = 100000",
            "threads_none": "threads = 0",
            "memory": f'memory = "{"9" * 400}"',
            "memory_none": 'memory = "0"',
            "dim_none": "dims = [0]",
            "pairs_none": "pairs_ = 0",
            "table": "[[[x]]]",
            "dtype": 'dtype = "[/b]"',
            "date": "seeds = [1979-05-27]",
        }.items()
    },
    **{
        f"fit_{name}.toml": (
            'models = ["{tiny}"]\ntasks = ["ioi"]\nsites = ["L1.mlp_act@S2"]\npairs = 8\n'
            f'kind = "fit"\nfits = [{{ method = "das", {option} }}]'
        ).encode()
        for name, option in {
            "lr_inf": "lr = inf",
            "lr_nan": "lr = nan",
            "lr_none": "lr = 0.0",
            "lr_text": 'lr = "x"',
            "steps": "steps = 0",
            "batch": "batch = -1",
            "loss": 'loss = "[/b]"',
        }.items()
    },
    **{
        f"site_{name}.toml": (
            'models = ["{tiny}"]\ntasks = ["ioi"]\npairs = 8\nkind = "fit"\n'
            f"sites = ['{site}']\nfits = ['random']"
        ).encode()
        for name, site in {
            "digits": f"L{'9' * 5000}.mlp_act@S2",
            "range": f"L0-{'9' * 30}.mlp_act@S2",
            "markup": "[/b]",
            "minus": "L-1.mlp_act@S2",
        }.items()
    },
}

AUDITS: dict[str, bytes] = {
    "empty": b"",
    "noise": NOISE,
    "list": b"[]",
    "null": b"null",
    "deep": deep("[", "]"),
    "digits": b'{"seconds": ' + b"9" * 5000 + b"}",
    "half": b'{"schema": "\\ud800"}',
    "schema": b'{"schema": "[/b]\\u001b[31m"}',
}

CONFIGS: dict[str, bytes] = {
    "empty": b"",
    "noise": NOISE,
    "list": b"[]",
    "null": b"null",
    "deep": deep("[", "]"),
    "none": b"{}",
    "type": b'{"model_type": "[/b]"}',
    "type_number": b'{"model_type": 3}',
    "type_list": b'{"model_type": []}',
    "encoder": b'{"model_type": "bert"}',
    "minus": b'{"model_type": "llama", "hidden_size": -1}',
    "text": b'{"model_type": "llama", "hidden_size": "x"}',
    "zero": b'{"model_type": "llama", "num_attention_heads": 0}',
    "float": b'{"model_type": "llama", "num_hidden_layers": 1.5}',
    "quantised": b'{"model_type": "llama", "quantization_config": {"quant_method": "x"}}',
    "gptq": b'{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}',
    "code": b'{"model_type": "x", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": '
    b'"evil.M"}}',
    "dtype": b'{"model_type": "llama", "dtype": "float3"}',
}

GGUF: dict[str, bytes] = {
    "empty.gguf": b"",
    "noise.gguf": NOISE,
    "magic.gguf": b"GGUF",
    "version.gguf": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "none.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "counts.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40),
    "key.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60),
}


def hostile_files(folder: Path, tiny: str) -> dict[str, str]:
    """Writes every hostile file under `folder`; its path by its name."""
    paths: dict[str, Path] = {}

    def put(name: str, data: bytes) -> None:
        paths[name] = folder / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(data.replace(b"{tiny}", tiny.encode()))

    for name, data in (SUBSPACES | PAIRS | FACTS | GRIDS | GGUF).items():
        put(name, data)
    put("good.npy", npy(np.random.default_rng(0).normal(size=56)))
    put("[red]good[/b].npy", npy(np.random.default_rng(0).normal(size=56)))
    put("text.txt", b"Then, Monica and Christine met. " * 400)
    put("short.txt", b"Then")
    put("plain", b"text")
    for name, data in AUDITS.items():
        put(f"audit_{name}/L1.mlp_act@S2/audit.json", data)
        put(f"failure_{name}/L1.mlp_act@S2/failure.json", data)
        put(f"failure_{name}/L1.mlp_act@S2/audit.json", b"{}")
        put(f"store_{name}/records/ab/{'ab' * 32}/record.json", data)
        paths |= {f"{kind}_{name}": folder / f"{kind}_{name}" for kind in
                  ("audit", "failure", "store")}  # fmt: skip
    for name, data in CONFIGS.items():
        paths[f"config_{name}"] = _model(folder / f"config_{name}", tiny, "config.json", data)
    for name in ("empty", "noise", "list", "null", "deep", "none"):
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            there = folder / f"{Path(file).stem}_{name}"
            paths[there.name] = _model(there, tiny, file, CONFIGS[name])
    for name in ("empty", "noise", "length", "list", "outside", "halves"):
        there = folder / f"weights_{name}"
        data = SUBSPACES[f"{name}.safetensors"]
        paths[there.name] = _model(there, tiny, "model.safetensors", data)
    for name in ("loop", "fifo"):
        special = folder / name
        for suffix in ("", ".npy", ".pt", ".safetensors", ".jsonl", ".json", ".toml", ".gguf"):
            paths[name + suffix] = special.with_name(name + suffix)
            if name == "loop":
                paths[name + suffix].symlink_to(paths[name + suffix].name)
            else:
                os.mkfifo(paths[name + suffix])
    (folder / "fifo_audit/L1.mlp_act@S2").mkdir(parents=True)
    os.mkfifo(folder / "fifo_audit/L1.mlp_act@S2/audit.json")
    (folder / "dangling").symlink_to("nowhere/at/all")
    (folder / "nothing").mkdir()
    for name in ("fifo_audit", "dangling", "nothing"):
        paths[name] = folder / name
    for suffix in (".npy", ".pt", ".jsonl", ".toml", ".json", ".safetensors"):
        paths["folder" + suffix] = folder / f"folder{suffix}"
        paths["folder" + suffix].mkdir()
    return {name: str(path) for name, path in paths.items()}


def _model(folder: Path, tiny: str, file: str, data: bytes) -> Path:
    shutil.copytree(tiny, folder)
    (folder / file).write_bytes(data)
    return folder


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raises `Hang` after so many seconds, and ends the process where even that is not heard."""

    def stop(*_):
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judged(
    run: Callable[..., tuple[int, str, str]], arguments: list[str], folder: Path
) -> tuple[int, str]:
    """Exit code and the line of the error. Fails where a command leaves a traceback, more than one
    line, control characters, a half-written file, or a hang."""
    started = time.monotonic()
    with time_limit():
        code, out, err = run(*arguments)
    assert time.monotonic() - started < SECONDS
    assert code in (0, 1, 2), (code, err)
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if line.startswith("subspacelens: ")]
    usage = err.startswith("Usage: ")
    assert code != 2 or len(lines) == 1 or usage, err
    assert code != 0 or not lines, err
    assert "\x1b" not in "".join(lines) + out
    left = [p.name for p in folder.rglob(".*") if not p.is_dir()]
    assert not left, left
    return code, err if usage else lines[0] if lines else ""
