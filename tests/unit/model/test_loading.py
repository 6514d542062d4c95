"""What is loaded is the model in the folder, whole, and nothing in the folder is run."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subspacelens.core.errors import ModelError
from subspacelens.model import gguf
from subspacelens.model.loading import load_model

HOSTILE = "from pathlib import Path\nPath({mark!r}).write_text('ran')\nraise SystemExit\n"


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def changed(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path | str) -> str:
    with pytest.raises(ModelError) as error:
        load_model(folder, device="cpu")
    text = str(error.value)
    assert "\n" not in text and str(folder)[:40] in text
    return text


@pytest.mark.parametrize("name", ["./my-model", "../my-model", "~/my-model", "my/own/model"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(name):
    assert "no such file or folder" in refused(name)


@pytest.mark.parametrize("which", ["model", "config", "tokenizer"])
def test_code_in_a_folder_is_never_run_and_nobody_is_asked(folder, monkeypatch, tmp_path, which):
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(HOSTILE.format(mark=str(mark)))
    if which == "tokenizer":
        auto = {"AutoTokenizer": [None, "evil.Evil"]}
        changed(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="Evil")
    else:
        auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
        changed(folder / "config.json", auto_map=auto, model_type="evil")
    stdin = io.StringIO("y\n" * 100)
    monkeypatch.setattr("sys.stdin", stdin)
    assert "code from its own repository" in refused(folder)
    assert not mark.exists()
    assert stdin.tell() == 0


def test_code_that_is_not_needed_is_not_run_either(folder, tmp_path):
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(HOSTILE.format(mark=str(mark)))
    changed(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    assert len(load_model(folder, device="cpu").map.blocks) == 4
    assert not mark.exists()


def test_attention_code_from_the_hub_is_refused(folder):
    changed(folder / "config.json", attn_implementation="someone/attention")
    assert "someone/attention" in refused(folder)


def test_quantised_weights_are_refused(folder):
    changed(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantised" in refused(folder)


def test_a_configuration_of_a_far_larger_model_is_refused_before_it_is_made(folder):
    changed(folder / "config.json", hidden_size=2**20, intermediate_size=2**22)
    assert "its configuration describes" in refused(folder)


@pytest.fixture
def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_missing_weights_are_refused_by_name(folder, weights):
    name = "model.layers.1.mlp.up_proj.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"lack {name}" in refused(folder)


def test_weights_of_another_shape_are_refused_by_name(folder, weights):
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = torch.zeros(3, 5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = refused(folder)
    assert name in text and "3 x 5" in text and "56 x 32" in text


def test_a_configuration_with_more_or_fewer_layers_than_the_weights_is_refused(folder):
    changed(folder / "config.json", num_hidden_layers=6)
    text = refused(folder)
    assert "lack model.layers.4" in text and "17 more" in text
    changed(folder / "config.json", num_hidden_layers=3)
    assert "model.layers.3" in refused(folder)


def test_a_weight_that_no_model_has_is_let_be(folder, weights):
    weights["model.layers.0.rotary.inv_freq"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder, device="cpu").map.d_model == 32


def test_tied_weights_are_not_missing(folder, weights):
    changed(folder / "config.json", tie_word_embeddings=True)
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder, device="cpu").map.d_model == 32


def test_a_pickle_named_in_the_index_is_refused(folder, weights):
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    files = dict.fromkeys(weights, "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "pytorch_model.bin" in refused(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": 5}'),
        ("config.json", '{"model_type": "llama", "vocab_size": "many"}'),
        ("config.json", '{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "[]"),
        ("model.safetensors.index.json", "[]"),
        ("model.safetensors.index.json", '{"weight_map": 5}'),
    ],
)
def test_damaged_files_are_one_line(folder, file, content):
    (folder / file).write_text(content)
    refused(folder)


@pytest.mark.parametrize("error", [ImportError, TypeError, AttributeError, KeyError, MemoryError])
def test_whatever_transformers_raises_is_one_line(folder, monkeypatch, error):
    def fail(*_, **__):
        raise error("first\nsecond")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    assert "first" in refused(folder)


def test_a_name_too_long_for_a_file_is_one_line():
    refused("x" * 5000)


# GGUF.


def test_of_two_conversions_at_once_the_second_takes_what_the_first_made(
    tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("SUBSPACELENS_CACHE", str(tmp_path / "cache"))
    lens = load_model(tiny_folder, device="cpu")
    together = threading.Barrier(2)

    def both_at_once(*_, **__):
        together.wait(10)
        return lens.model, lens.tokenizer

    monkeypatch.setattr(gguf, "pretrained", both_at_once)
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF and more")
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(gguf.from_gguf(file))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 2 and made[0] == made[1]
    assert [path.name for path in made[0].parent.iterdir()] == [made[0].name]
    again = load_model(made[0], device="cpu")
    assert again.weights_sha256 == lens.weights_sha256
