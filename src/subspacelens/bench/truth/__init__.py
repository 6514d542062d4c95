"""Tiny models in which a variable was trained, or planted, to live at a known place, and their
tasks."""

from .models import TrainedModel, check, load_trained, trained_names
from .parity import parity_task
from .planted import load_planted, planted_models

__all__ = [
    "TrainedModel",
    "check",
    "load_planted",
    "load_trained",
    "parity_task",
    "planted_models",
    "trained_names",
]
