"""From raw text to a served ModernBERT encoder, in one package.

import modernbert
model = modernbert.load("answerdotai/ModernBERT-base")
model.fill_mask("The capital of France is [MASK].")
"""

import importlib
from typing import TYPE_CHECKING

import modernbert.text.tokenizer as _tokenizer  # noqa: F401 - `modernbert.text.tokenizer` is part of the promise
from modernbert.batch import IGNORE, Document, PackedBatch
from modernbert.dropin import accelerate, restore
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.retrieval import encode
from modernbert.tasks import EncoderModel, MaskedLM, load

if TYPE_CHECKING:  # editors and type checkers read no `__getattr__`
    from modernbert.dropin.bert import (
        ModernBERTForMaskedLM,
        ModernBERTForQuestionAnswering,
        ModernBERTForSequenceClassification,
        ModernBERTForTokenClassification,
        ModernBERTModel,
    )
    from modernbert.dropin.bert_config import ModernBERTConfig
    from modernbert.dropin.bert_tokenizer import ModernBERTTokenizer

# Classes for code written for BERT, opened when first asked for: the front door stays cheap.
_BERT_STYLE = {
    "ModernBERTConfig": "bert_config", "ModernBERTTokenizer": "bert_tokenizer", "ModernBERTModel": "bert",
    "ModernBERTForMaskedLM": "bert", "ModernBERTForQuestionAnswering": "bert",
    "ModernBERTForSequenceClassification": "bert", "ModernBERTForTokenClassification": "bert",
}  # fmt: skip

__version__ = "0.1.0"
__all__ = [
    "IGNORE", "PRESETS", "Document", "EncoderModel", "MaskedLM", "ModernBERTConfig", "ModernBERTForMaskedLM",
    "ModernBERTForQuestionAnswering", "ModernBERTForSequenceClassification", "ModernBERTForTokenClassification",
    "ModernBERTModel", "ModernBERTTokenizer", "ModernBertConfig", "PackedBatch", "accelerate", "encode", "load", "restore",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _BERT_STYLE:
        return getattr(importlib.import_module(f"modernbert.dropin.{_BERT_STYLE[name]}"), name)
    raise AttributeError(f"module 'modernbert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_BERT_STYLE})
