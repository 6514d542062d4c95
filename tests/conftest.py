from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers_models import FAMILIES
from helpers_tokenizer import ioi_tokenizer
from subspacelens.cli import main


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> str:
    """A tiny random llama in hub layout, with a tokenizer that knows the words of IOI."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    tokenizer = ioi_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **FAMILIES["llama"])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line, run here: exit code, what it printed, what it said of errors."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["subspacelens", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call
