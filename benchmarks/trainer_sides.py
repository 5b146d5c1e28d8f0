"""Two ways to pretrain by masked language modelling on the same documents: ours, and a `transformers` Trainer.

Each does steps for a while and says how many real tokens they had. Theirs is timed from `on_train_begin` to the last
`on_step_end`, so that reading and collating count and building the Trainer does not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modernbert import PRESETS
from modernbert.batch import PackedBatch
from modernbert.data import MlmBatches
from modernbert.runtime import Runtime
from modernbert.tasks import MaskedLM
from modernbert.text import Shards, load_tokenizer, num_ids, special_ids
from modernbert.train.loop import accumulate
from modernbert.train.spread import alone

MASK_RATE, SHORT, LONG = 0.3, 1024, 8192


def our_step(task: MaskedLM, optimizer: torch.optim.Optimizer, batch: PackedBatch, runtime: Runtime) -> None:
    """What train.loop does in a step of one micro-batch."""
    accumulate(alone(task), [batch], runtime)
    torch.nn.utils.get_total_norm([p.grad for p in task.parameters() if p.grad is not None]).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Documents(Dataset):
    """One document a row, cut to a length. Rows change their order with each turn."""

    def __init__(self, folders: Mapping[str, Path], length: int) -> None:
        self.shards = [Shards.open(folder) for folder in folders.values()]
        self.special = special_ids(load_tokenizer(next(iter(folders.values()))))
        self.length = length
        self.places = [(s, d) for s, shards in enumerate(self.shards) for d in range(len(shards))]
        self.shuffle(0)

    def shuffle(self, seed: int) -> None:
        """Another order of the rows."""
        self.order = np.random.default_rng(seed).permutation(len(self))

    def __len__(self) -> int:
        return len(self.places)

    def mean_length(self) -> float:
        """Tokens of a row."""
        lengths = np.concatenate([shards.lengths for shards in self.shards])
        return float(np.minimum(lengths + 2, self.length).mean())

    def ids(self, row: int, stop: int | None) -> np.ndarray:
        """A document's first `stop` tokens, [CLS] and [SEP] around them."""
        shard, document = self.places[row]
        content = self.shards[shard].tokens(document, 0, stop)
        return np.concatenate([[self.special.cls], content, [self.special.sep]]).astype(np.uint32)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.features(self.ids(self.order[index], self.length - 2))

    def features(self, ids: np.ndarray) -> dict[str, list[int]]:
        """A row as the collator takes it."""
        is_special = np.isin(ids, [self.special.cls, self.special.sep]).astype(int)
        return {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "special_tokens_mask": is_special.tolist()}


class Blocks(Documents):
    """All documents end to end, special tokens included, cut every `length` tokens; the remainder is dropped."""

    def __init__(self, folders: Mapping[str, Path], length: int) -> None:
        super().__init__(folders, length)
        flat = np.concatenate([self.ids(row, None) for row in self.order])  # documents in random order, as ours are
        self.blocks = flat[: len(flat) // length * length].reshape(-1, length)
        self.shuffle(0)

    def __len__(self) -> int:
        return len(self.blocks) if hasattr(self, "blocks") else super().__len__()

    def mean_length(self) -> float:
        """Tokens of a row."""
        return float(self.length)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.features(self.blocks[self.order[index]])


@dataclass(kw_only=True)
class Turn:
    """What one competitor did in one turn."""

    steps: int
    seconds: float
    tokens: int  # real ones
    slots: int  # padding included

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds


class Ours:
    """Our training on packed batches of some length; several may share a task and its optimizer."""

    def __init__(
        self, task: MaskedLM, optimizer: torch.optim.Optimizer, folders: Mapping[str, Path], length: int, tokens: int
    ) -> None:
        self.task, self.optimizer, self.runtime = task, optimizer, Runtime.detect(device="cpu")
        batches = MlmBatches(
            folders, sequence_length=length, micro_batch_tokens=max(tokens, length), mask_rate=MASK_RATE, seed=0
        )
        self.stream = batches.stream()

    def turn(self, seconds: float, seed: int) -> Turn:  # noqa: ARG002 - the stream goes on by itself
        """Train for some seconds, a step at least."""
        turn = Turn(steps=0, seconds=0.0, tokens=0, slots=0)
        began_at = time.perf_counter()
        while turn.steps == 0 or turn.seconds < seconds:
            batch, _ = next(self.stream)
            our_step(self.task, self.optimizer, batch, self.runtime)
            turn.steps, turn.seconds = turn.steps + 1, time.perf_counter() - began_at
            turn.tokens, turn.slots = turn.tokens + batch.num_tokens, turn.slots + batch.num_tokens
        return turn


class CountingCollator:
    """Their collator, noting (real tokens, slots) of each batch. The loader reads one batch ahead of training."""

    def __init__(self, tokenizer: Any) -> None:
        self.collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE)
        self.counts: list[tuple[int, int]] = []

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """A padded, masked batch."""
        batch = self.collate(rows)
        self.counts.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
        return batch


class StopWatch(TrainerCallback):
    """Ends `train()` behind the step in which `is_over(seconds)` comes true."""

    def __init__(self) -> None:
        self.is_over: Callable[[float], bool] = lambda _seconds: True
        self.begin: Callable[[], None] = lambda: None

    def on_train_begin(self, *_arguments: Any, **_values: Any) -> None:
        """Start."""
        self.begin()
        self.steps, self.began_at = 0, time.perf_counter()

    def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_values: Any) -> None:
        """Stop where it is time."""
        self.steps += 1
        self.seconds = time.perf_counter() - self.began_at
        control.should_training_stop = self.is_over(self.seconds)


class Theirs:
    """A Trainer on some rows; several may share a model and its optimizer."""

    def __init__(
        self, model: ModernBertForMaskedLM, rows: Documents, folder: Path, tokens: int, *, sparse: bool = True, lr: float = 1e-4,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:  # fmt: skip
        self.model, self.rows, self.sparse = model, rows, sparse
        self.watch, self.collator = StopWatch(), CountingCollator(AutoTokenizer.from_pretrained(folder))
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), max_steps=10**6, learning_rate=lr, lr_scheduler_type="constant",
            per_device_train_batch_size=max(1, round(tokens / rows.mean_length())), remove_unused_columns=False,
            use_cpu=True, dataloader_pin_memory=False, save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        self.trainer = Trainer(
            model=model, args=arguments, train_dataset=rows, data_collator=self.collator, callbacks=[self.watch],
            optimizers=(optimizer, None),
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)
        self.optimizer = optimizer or self.trainer.create_optimizer()

    def turn(self, seconds: float, seed: int) -> Turn:
        """Train for some seconds, a step at least, on rows in an order of their own."""
        return self.train_until(lambda passed: passed >= seconds, seed)

    def train_until(self, is_over: Callable[[float], bool], seed: int) -> Turn:
        """Train until this comes true of the seconds behind a step."""
        self.watch.is_over = is_over
        self.model.sparse_prediction = self.sparse
        self.rows.shuffle(seed)
        self.collator.counts.clear()
        self.trainer.train()
        counts = self.collator.counts[: self.watch.steps]
        real, slots = (sum(column) for column in zip(*counts, strict=True))
        return Turn(steps=self.watch.steps, seconds=self.watch.seconds, tokens=real, slots=slots)


def their_model(config: Any) -> ModernBertForMaskedLM:
    shape = ModernBertConfig.from_dict(config.to_dict("ModernBertForMaskedLM"))
    return ModernBertForMaskedLM._from_config(shape, attn_implementation="sdpa")


def fitted(shape: str, folders: Mapping[str, Path]) -> Any:
    """A preset with the embedding and special ids of the data's tokenizer."""
    tokenizer = load_tokenizer(next(iter(folders.values())))
    special = special_ids(tokenizer)
    ids = {"pad": special.pad, "cls": special.cls, "bos": special.cls, "sep": special.sep, "eos": special.sep}
    return PRESETS[shape].replace(
        vocab_size=-(-num_ids(tokenizer) // 64) * 64, **{f"{name}_token_id": value for name, value in ids.items()}
    )
