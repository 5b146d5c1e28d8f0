"""Hidden states → predictions: one file per task, each with its head, its loss and its prediction."""

from modernbert.tasks.base import EncoderModel, TaskOutput
from modernbert.tasks.load import load
from modernbert.tasks.mlm import MaskedLM

__all__ = ["EncoderModel", "MaskedLM", "TaskOutput", "load"]
