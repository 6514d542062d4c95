"""Tiny models in which a variable was trained to live at a known place, and their task."""

from .models import TrainedModel, check, load_trained, trained_names
from .parity import parity_task

__all__ = ["TrainedModel", "check", "load_trained", "parity_task", "trained_names"]
