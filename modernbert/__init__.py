"""From raw text to a served ModernBERT encoder, in one package.

import modernbert
model = modernbert.load("answerdotai/ModernBERT-base")
model.fill_mask("The capital of France is [MASK].")
"""

import modernbert.text.tokenizer as _tokenizer  # noqa: F401 - `modernbert.text.tokenizer` is part of the promise
from modernbert.batch import IGNORE, Document, PackedBatch
from modernbert.dropin import accelerate, restore
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.retrieval import encode
from modernbert.tasks import EncoderModel, MaskedLM, load

__version__ = "0.1.0"
__all__ = [
    "IGNORE", "PRESETS", "Document", "EncoderModel", "MaskedLM", "ModernBertConfig", "PackedBatch", "accelerate", "encode",
    "load", "restore",
]  # fmt: skip
