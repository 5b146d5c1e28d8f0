"""Hidden states → predictions: one file per task, each with its head, its loss and its prediction."""

from modernbert.tasks.answer import Answerer
from modernbert.tasks.base import EncoderModel, TaskOutput
from modernbert.tasks.classify import Classifier
from modernbert.tasks.embed import Embedder
from modernbert.tasks.load import load
from modernbert.tasks.mlm import MaskedLM
from modernbert.tasks.tag import Tagger

__all__ = ["Answerer", "Classifier", "Embedder", "EncoderModel", "MaskedLM", "Tagger", "TaskOutput", "load"]
