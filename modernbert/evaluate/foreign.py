"""A folder or hub name → the model in it, ours or any encoder that transformers can load, with the calls of ours.

    config.json says `modernbert` → `tasks.load`     anything else → transformers, behind `model.foreign`

So one protocol measures BERT, DeBERTa and ModernBERT alike. Fast tokenizers only, and used as they are: their own special
tokens, lower-casing and all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from modernbert.batch import IGNORE, PackedBatch
from modernbert.errors import CheckpointError, DataError, UnsupportedError
from modernbert.model import hub
from modernbert.model.foreign import ForeignConfig, ForeignEncoder, groups_of_like_length
from modernbert.tasks import EncoderModel, load
from modernbert.tasks.base import TaskOutput
from modernbert.tasks.load import newest_checkpoint
from modernbert.tasks.mlm import MaskedLM

_LOGIT_BYTES_AT_ONCE = 2**28  # of an MLM that gives logits at every position


def open_encoder(name: str | Path, device: str | torch.device = "cpu") -> EncoderModel:
    """The encoder under a name, with its tokenizer, in evaluation mode.

    Args:
        name: a checkpoint folder, a run folder (its newest checkpoint), an address, or a hub name.
        device: where to put the weights, which are float32.

    Raises:
        CheckpointError: nothing there that can be opened.
        UnsupportedError: no encoder, a tokenizer without a fast form, or transformers is needed and not installed.
    """
    if is_ours(name):
        return load(name, device=device)
    encoder, tokenizer = load_foreign(name)
    return EncoderModel(encoder.config, tokenizer, encoder=encoder).to(device).eval()


def open_masked(name: str | Path, device: str | torch.device = "cpu") -> MaskedLM | ForeignMaskedLM:
    """The same with its head for masked language modelling.

    Raises:
        CheckpointError: it has none.
    """
    if not is_ours(name):
        return load_foreign_masked(name).to(device).eval()
    model = load(name, device=device)
    if not isinstance(model, MaskedLM):
        raise CheckpointError(f"{name} has no MLM head, which this measures; give a pretrained checkpoint")
    return model


def is_ours(name: str | Path) -> bool:
    """Whether a checkpoint is a ModernBERT, which needs no transformers."""
    if "/" not in str(name) and not Path(name).exists():
        return False  # such as bert-base-uncased: transformers knows it, or says what it is not
    values = hub.read_config_values(newest_checkpoint(hub.find_folder(name)))
    return values.get("model_type", "modernbert") == "modernbert"


def load_foreign(name_or_folder: str | Path) -> tuple[ForeignEncoder, Tokenizer]:
    """Open any encoder of transformers, a ModernBERT too.

    Returns:
        The encoder in evaluation mode, in float32, and its tokenizer, which neither cuts nor pads.

    Raises:
        CheckpointError: transformers cannot open it; the message is its own.
        UnsupportedError: no encoder, a tokenizer without a fast form, or transformers is not installed.
    """
    model = _opened(name_or_folder, "AutoModel")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # read by nothing here, and drawn anew at each load where the checkpoint has none
    tokenizer, sep_token_id, max_length = _tokenizer_of(name_or_folder)
    return ForeignEncoder(model, sep_token_id=sep_token_id, max_length=max_length).eval(), tokenizer


def load_foreign_masked(name_or_folder: str | Path) -> ForeignMaskedLM:
    """Open a masked language model of transformers; raises as `load_foreign` does."""
    model = _opened(name_or_folder, "AutoModelForMaskedLM")
    tokenizer, sep_token_id, max_length = _tokenizer_of(name_or_folder)
    return ForeignMaskedLM(model, tokenizer, sep_token_id=sep_token_id, max_length=max_length).eval()


class ForeignMaskedLM(nn.Module):
    """A masked language model of transformers that takes packed, labelled batches and gives what `MaskedLM` gives."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, *, sep_token_id: int | None, max_length: int | None = None
    ) -> None:
        super().__init__()
        self.whole, self.tokenizer = model, tokenizer
        base: Any = model.base_model
        # Not a submodule of its own: it only lays texts out, and its weights are those of `whole`.
        self._layout = [ForeignEncoder(base, sep_token_id=sep_token_id, max_length=max_length)]

    @property
    def config(self) -> ForeignConfig:
        """The shape."""
        return self._layout[0].config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self.tokenizer

    def forward(self, batch: PackedBatch) -> TaskOutput:
        """Cross-entropy summed over the labelled positions, without gradients, and how many were guessed right."""
        assert batch.labels_T is not None and not torch.is_grad_enabled()
        lengths = batch.lengths()
        rows, labels = (list(tensor.split(lengths)) for tensor in (batch.input_ids_T, batch.labels_T))
        losses_T = torch.zeros(batch.num_tokens, device=batch.labels_T.device)
        right_T = torch.zeros_like(losses_T, dtype=torch.bool)
        losses, right = losses_T.split(lengths), right_T.split(lengths)
        for places in groups_of_like_length(lengths, max(1, _LOGIT_BYTES_AT_ONCE // (4 * self.config.vocab_size))):
            logits_BLV = self.whole(**self._layout[0].padded([rows[place] for place in places])).logits
            for place, logits_LV in zip(places, logits_BLV, strict=True):
                at: Tensor = (labels[place] != IGNORE).nonzero().squeeze(1)
                logits_MV = logits_LV[at].float()
                losses[place][at] = F.cross_entropy(logits_MV, labels[place][at], reduction="none")
                right[place][at] = logits_MV.argmax(-1) == labels[place][at]
        losses_M = losses_T[batch.labels_T != IGNORE]
        return TaskOutput(losses_M.sum(), len(losses_M), {"accuracy": right_T.sum()}, losses_M)


def _opened(name: str | Path, auto_class: str) -> Any:
    """A model in float32 and evaluation mode."""
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedError(
            f"{name} is no ModernBERT, and others need transformers, which is not installed; pip install 'modernbert[hf]'"
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(_place(name))
    except Exception as error:  # a library's own kinds, which differ by version
        raise CheckpointError(f"{name}: transformers cannot open it ({_first_line(error)})") from error
    if config.is_encoder_decoder or type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        raise UnsupportedError(
            f"{name} is a {config.model_type}, which reads in one direction or writes; give an encoder such as BERT"
        )
    try:
        with _quiet():
            opened = getattr(transformers, auto_class).from_pretrained(
                _place(name), config=config, output_loading_info=True
            )
    except Exception as error:  # as above
        raise CheckpointError(f"{name}: transformers cannot open it ({_first_line(error)})") from error
    model, found = opened
    # A pooler is used by nothing here; anything else missing would be random numbers in silence.
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler.") and ".pooler." not in key)
    if missing:
        raise CheckpointError(f"{name} has no {missing[0]} ({len(missing)} tensors missing); give a whole checkpoint")
    return model.float().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing a bar, and a report of heads that are not wanted; what is missing is checked here."""
    from transformers.utils import logging

    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _tokenizer_of(name: str | Path) -> tuple[Tokenizer, int | None, int | None]:
    """The tokenizer behind a fast one, the id of its separator, and the length it states."""
    import transformers

    try:
        outer = transformers.AutoTokenizer.from_pretrained(_place(name))
    except Exception as error:  # as above
        raise DataError(f"{name}: transformers cannot open its tokenizer ({_first_line(error)})") from error
    if not outer.is_fast:
        raise UnsupportedError(f"{name}: its tokenizer has no fast form, which is needed; save it as a tokenizer.json")
    tokenizer = Tokenizer.from_str(outer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, outer.sep_token_id, outer.model_max_length


def _place(name: str | Path) -> str:
    """A folder, or a run's newest checkpoint, or the hub name as it is."""
    return str(newest_checkpoint(Path(name))) if Path(name).is_dir() else str(name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
