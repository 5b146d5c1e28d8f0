"""Checkpoint ↔ one of the BERT-style classes, and what every one of them has beside its `forward`.

    config → encoder and head, of the task that has these weights → tensors of the folder; a head that it lacks is drawn

Price: the encoder's weights are read once; a head of ModernBERT-base's size is drawn in about 10 ms.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from modernbert.dropin.bert_config import ModernBERTConfig, refuse_unknown
from modernbert.errors import CheckpointError, ConfigError, UnsupportedError
from modernbert.model import hub
from modernbert.model.encoder import Encoder
from modernbert.model.init import initialize
from modernbert.runtime import Runtime
from modernbert.tasks.base import EncoderModel
from modernbert.tasks.head import HeadModel, HeadSettings
from modernbert.tasks.load import HEADS, newest_checkpoint
from modernbert.tasks.mlm import MaskedLM
from modernbert.text.tokenizer import load_tokenizer, save_tokenizer

log = logging.getLogger(__name__)

_KINDS: Mapping[str, Any] = {
    "ModernBertForSequenceClassification": (None, "single"), "ModernBertForTokenClassification": ("tag", "tokens"),
    "ModernBertForQuestionAnswering": ("answer", "spans"),
}  # fmt: skip
_HEADS = ("head.", "classifier.", "decoder.")
# Arguments of transformers' that choose what is chosen here already: kernels, the safe format, the lean way to load.
_WITHOUT_EFFECT = {
    "attn_implementation",
    "reference_compile",
    "low_cpu_mem_usage",
    "use_safetensors",
    "trust_remote_code",
}
_OF_SAVING = {"safe_serialization", "is_main_process"}  # always the safe format, and by whoever calls
_OF_THE_HUB = {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}


class Pretrained(nn.Module):
    """Weights of a checkpoint under its names: `model`, and `head`, `classifier` or `decoder`.

    Args:
        config: the shape, and what the head answers. Weights are drawn, from PyTorch's own stream of random numbers.
    """

    architecture: ClassVar[str]
    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "input_ids"
    accepts_loss_kwargs: ClassVar[bool] = False
    model: Encoder
    head: Any
    drop: Any
    classifier: Any
    decoder: Any

    def __init__(self, config: ModernBERTConfig) -> None:
        super().__init__()
        self.config = config.copy()
        self.tokenizer: Tokenizer | None = None
        if self.architecture == "ModernBertForQuestionAnswering" and config.num_labels != 2:
            raise ConfigError(f"num_labels={config.num_labels} for question answering; it has two, start and end")
        for name, part in self._task_like().named_children():
            self.add_module(name, part)
        if not self.model.embeddings.tok_embeddings.weight.is_meta:
            self._draw(self)

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_name: str | Path, *, config: ModernBERTConfig | None = None,
        ignore_mismatched_sizes: bool = False, dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None, device_map: Any = None, **changes: Any,
    ) -> Self:  # fmt: skip
        """Open a checkpoint, in evaluation mode; a head that it does not have is drawn, with a warning.

        Args:
            folder_or_hub_name: a checkpoint folder, a run folder (its newest checkpoint), or a hub name.
            config: in place of the folder's.
            ignore_mismatched_sizes: also draw a head whose stored one has another number of labels.
            dtype: of the weights; float32 unless said ("auto", too).
            torch_dtype: its older name.
            device_map: a device for all of it, or "auto".
            changes: `num_labels`, `id2label`, `label2id`, `problem_type`, `classifier_dropout`, `classifier_pooling`,
                `output_hidden_states`, `return_dict`, in place of what `config.json` says.

        Raises:
            CheckpointError: missing, incomplete, of another model, or with a head of other labels.
            ConfigError: an argument that is not known, or labels that contradict each other.
        """
        folder = newest_checkpoint(hub.find_folder(folder_or_hub_name))
        of_hub = _OF_THE_HUB if Path(folder_or_hub_name).is_dir() else set()
        changes = {name: value for name, value in changes.items() if name not in _WITHOUT_EFFECT | of_hub}
        for name in sorted(_OF_THE_HUB & changes.keys()):
            raise UnsupportedError(f"{name}={changes[name]!r} of a hub name; fetch that folder, and give its path")
        if cls.architecture == "ModernBertForQuestionAnswering" and not changes.keys() & {"id2label", "label2id"}:
            changes.setdefault("num_labels", 2)  # whatever the checkpoint's labels are of
        if config is None:
            config = ModernBERTConfig.from_values(hub.read_config_values(folder), **changes)
        elif changes.keys() - {"num_labels"}:
            raise ConfigError(f"{min(changes)}=… beside config=…; say it in the config")
        chosen = config
        model = hub.on_meta(lambda: cls(chosen))
        model._fill(folder, ignore_mismatched_sizes)
        model.config.name_or_path = str(folder_or_hub_name)
        if (folder / "tokenizer.json").exists():
            model.tokenizer = load_tokenizer(folder)
        return model.to(device=_device(device_map), dtype=_dtype(dtype or torch_dtype)).eval()

    def save_pretrained(
        self, folder: str | Path, *, state_dict: Mapping[str, Tensor] | None = None, **others: Any
    ) -> None:
        """Write `config.json` and `model.safetensors`, and the tokenizer this was loaded with where there is none yet.

        The folder opens with `modernbert.load` and with transformers' class. Files are put in place when whole.

        Args:
            folder: where to; made if need be.
            state_dict: weights in place of the model's own, of the same names and shapes.
            others: `safe_serialization` and `is_main_process` change nothing.

        Raises:
            ConfigError: another argument, a `state_dict` of another model, or another number of labels than the head has.
        """
        refuse_unknown("save_pretrained", others, {"state_dict", *_OF_SAVING})
        state = self.state_dict()
        if state_dict is not None:
            ours, given = ({name: tuple(t.shape) for name, t in of.items()} for of in (state, state_dict))
            for name in sorted(name for name in ours.keys() | given.keys() if ours.get(name) != given.get(name)):
                fault = f"has {name} of {given[name]}" if name in given else f"lacks {name}"
                raise ConfigError(
                    f"state_dict {fault}, unlike this model; give names and shapes of its own state_dict()"
                )
            state = dict(state_dict)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if "classifier" in self._modules and len(self.classifier.weight) != self.config.num_labels:
            raise ConfigError(f"config.num_labels={self.config.num_labels}; the head has {len(self.classifier.weight)}")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as unfinished:
            hub.write_weights(Path(unfinished), state, self.config.stored(), architecture=self.architecture)
            if self.tokenizer is not None and not (folder / "tokenizer.json").exists():
                length = self.config.max_position_embeddings
                save_tokenizer(self.tokenizer, unfinished, model_max_length=length)
            for path in sorted(Path(unfinished).iterdir(), key=lambda path: path.name == hub.CONFIG):
                os.replace(path, folder / path.name)
        (folder / hub.WEIGHTS_INDEX).unlink(missing_ok=True)  # of weights that were here before

    def task(self) -> EncoderModel:
        """The same weights as the rest of the package knows them: packed batches, `predict`, `fill_mask`, `save`."""
        task = hub.on_meta(lambda: self._task_like(HEADS.get(self.architecture)))
        for name, part in self.named_children():
            setattr(task, name, part)
        task.tokenizer, task.training = self.tokenizer, self.training
        return task

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embeddings.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.model.embeddings.tok_embeddings.weight.dtype

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return self.config.num_labels

    @property
    def base_model(self) -> Encoder:
        """The encoder, which takes packed batches."""
        return self.model

    @property
    def name_or_path(self) -> str:
        """What it was loaded from."""
        return self.config.name_or_path

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Weights of encoder and head; the tied decoder counts once."""
        embedding = self.get_input_embeddings().weight if exclude_embeddings else None
        counted = (p for p in self.parameters() if p is not embedding and (p.requires_grad or not only_trainable))
        return sum(p.numel() for p in counted)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding, which is the decoder's matrix too."""
        return self.model.embeddings.tok_embeddings

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Keep of each layer its input alone for the backward pass; the choices that transformers has change nothing."""
        del gradient_checkpointing_kwargs
        self.model.checkpoint_layers = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all again."""
        self.model.checkpoint_layers = False

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Give the embedding another number of rows, and the decoder its biases; new rows are drawn.

        Args:
            new_num_tokens: `len(tokenizer)`, or more; None leaves the number as it is.
            pad_to_multiple_of: more rows, up to such a number.
        """
        old = self.get_input_embeddings()
        number = old.num_embeddings if new_num_tokens is None else new_num_tokens
        number = -(-number // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        if number == old.num_embeddings:
            return old
        new = nn.Embedding(number, old.embedding_dim)
        self._draw(new)
        kept = min(number, old.num_embeddings)
        with torch.no_grad():
            new = new.to(old.weight)
            new.weight[:kept] = old.weight[:kept]
            new.weight.requires_grad_(old.weight.requires_grad)
            self.model.embeddings.tok_embeddings = new
            bias = self.decoder.bias if "decoder" in self._modules else None
            if bias is not None:
                self.decoder.bias = nn.Parameter(torch.cat([bias[:kept], bias.new_zeros(number - kept)]))
        self.model.config = self.model.config.replace(vocab_size=number)
        self.config.reshape(vocab_size=number)
        return new

    def _task_like(self, kind: type[HeadModel] | None = None) -> EncoderModel:
        """A task with modules of this config."""
        config = self.config
        if self.architecture in _KINDS:
            of, problem = _KINDS[self.architecture]
            values = config.to_dict()
            if kind is None:  # modules alone: how labels are read is decided here, where several numbers are one kind
                values.pop("problem_type", None)
            settings = HeadSettings.from_values(
                values, kind=of, problem=problem, num_outputs=config.num_labels,
                max_length=config.max_position_embeddings,
            )  # fmt: skip
            return (kind or HeadModel)(config.stored(), None, settings, head_dropout=config.classifier_dropout)
        return (MaskedLM if self.architecture == "ModernBertForMaskedLM" else EncoderModel)(config.stored())

    def _draw(self, part: nn.Module) -> None:
        seed = int(torch.randint(2**31, ()))  # so that `torch.manual_seed` says which weights these are
        initialize(part, self.config.shape, torch.Generator().manual_seed(seed))

    def _fill(self, folder: Path, ignore_mismatched_sizes: bool) -> None:
        tensors = hub.read_model_tensors(folder)
        wanted = self.state_dict()
        others = {n for n in wanted if n in tensors and n.startswith(_HEADS) and tensors[n].shape != wanted[n].shape}
        if others and not ignore_mismatched_sizes:
            name = min(others, key=lambda name: not name.endswith("weight"))
            raise CheckpointError(
                f"{folder}: {name} has {len(tensors[name])} rows and {len(wanted[name])} are asked for; leave num_labels "
                "out, or say ignore_mismatched_sizes=True for a new head"
            )
        missing = {name for name in wanted if name.startswith(_HEADS) and name not in tensors} | others
        if missing:
            parts = nn.ModuleDict({name: part for name, part in self.named_children() if name != "model"})
            self._draw(parts.to_empty(device="cpu"))
            drawn = parts.state_dict()
            tensors |= {name: drawn[name] for name in missing}
            log.warning(
                "%s has no %s for %s: newly drawn, so train the model before you believe its answers",
                folder, ", ".join(sorted(missing)), type(self).__name__,
            )  # fmt: skip
        hub.load_tensors(self, tensors, origin=folder)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if isinstance(dtype, str):
        dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype.removeprefix("torch."), None)
    if dtype is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype={dtype!r}; give torch.float32, torch.bfloat16 or torch.float16")
    return dtype


def _device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping):
        raise UnsupportedError(f"device_map of {len(device_map)} entries: a model is on one device; name that")
    if device_map == "auto":
        return Runtime.detect().device
    return torch.device("cpu" if device_map is None else device_map)
