"""Texts, or pairs of texts → a class, all classes that apply, or a number.

    [CLS] text [SEP]    or    [CLS] text [SEP] pair [SEP]    → encoder → pool → head → classifier

One vector a text (its mean, or the first token's), as `ModernBertForSequenceClassification` has it. A text longer than
`max_length` is cut there; of a pair the longer one is. An empty text is read as its special tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import Feature, PackedBatch
from modernbert.errors import DataError
from modernbert.tasks.base import TaskOutput
from modernbert.tasks.head import HeadModel
from modernbert.text.examples import Example, TextExample

_APPLIES = 0.5  # probability from which on a class of several is said


class Classifier(HeadModel):
    """Sequence classification: single-label, multi-label or regression."""

    architecture: ClassVar[str] = "ModernBertForSequenceClassification"

    def logits(self, batch: PackedBatch) -> Tensor:
        """(B, C)."""
        return self.classify(pooled(self.model(batch), batch, self.settings.pooling))

    def forward(self, batch: PackedBatch) -> TaskOutput:
        """Cross-entropy, binary cross-entropy or squared error, summed over the documents that have a target."""
        logits_BC = self.logits(batch).float()
        if batch.targets_B is None:  # a rank that has none left
            return TaskOutput(logits_BC.sum() * 0.0, 0)
        losses_B = self._losses(logits_BC, batch.targets_B)
        metrics = {}
        if self.settings.problem == "single":
            metrics["accuracy"] = (logits_BC.detach().argmax(1) == batch.targets_B).sum()
        return TaskOutput(losses_B.sum(), len(losses_B), metrics, losses_B.detach())

    def _losses(self, logits_BC: Tensor, targets_B: Tensor) -> Tensor:
        weights = self.loss.class_weights
        weights_C = None if weights is None else logits_BC.new_tensor(weights)
        if self.settings.problem == "regression":
            return (logits_BC.squeeze(1) - targets_B.float()).square()
        if self.settings.problem == "multi":
            losses_BC = F.binary_cross_entropy_with_logits(logits_BC, targets_B.float(), reduction="none")
            return (losses_BC if weights_C is None else losses_BC * weights_C).mean(1)
        return F.cross_entropy(
            logits_BC, targets_B, weights_C, reduction="none", label_smoothing=self.loss.label_smoothing
        )

    def features(self, examples: Sequence[Example]) -> list[Feature]:
        """Tokenise texts or pairs; a label that the head does not have is refused by name."""
        tokenizer, max_length = self.need_tokenizer(), self.settings.max_length
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        try:
            encodings = tokenizer.encode_batch([_inputs(example) for example in examples])
        finally:
            tokenizer.no_truncation()
        known = {name: index for index, name in enumerate(self.settings.labels)}
        return [
            Feature(ids_T=np.array(encoding.ids, dtype=np.int32), target=self._target(example, known), example=index)
            for index, (example, encoding) in enumerate(zip(examples, encodings, strict=True))
        ]

    def _target(self, example: Example, known: dict[str, int]) -> Any:
        assert isinstance(example, TextExample)
        label = example.label
        if label is None:
            return None
        if self.settings.problem == "regression":
            assert isinstance(label, float)
            return np.float32(label)
        names = label if isinstance(label, tuple) else (label,)
        unseen = [name for name in names if name not in known]
        if unseen:
            raise DataError(f"{example.where}: label {unseen[0]!r} is none of the model's {len(known)} labels")
        if self.settings.problem == "single":
            assert isinstance(label, str)
            return known[label]
        target_C = np.zeros(len(known), dtype=np.float32)
        target_C[[known[str(name)] for name in names]] = 1.0
        return target_C

    def decide(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Of each text a dict.

        Single-label: `text`, `label`, `score` (its probability). Multi-label: `text`, `labels`, each with `label` and
        `score`, those of at least one half. Regression: `text`, `value`. A pair also has `pair`.
        """
        unlabelled = [
            TextExample(text=example.text, pair=example.pair)
            for example in examples
            if isinstance(example, TextExample)
        ]
        logits = self.outputs(self.features(unlabelled))
        return [
            _said(example) | self._answer(torch.from_numpy(row))
            for example, row in zip(unlabelled, logits, strict=True)
        ]

    def _answer(self, logits_C: Tensor) -> dict[str, Any]:
        labels = self.settings.labels
        if self.settings.problem == "regression":
            return {"value": logits_C.item()}
        if self.settings.problem == "multi":
            scores = logits_C.sigmoid().tolist()
            found = [{"label": name, "score": p} for name, p in zip(labels, scores, strict=True) if p >= _APPLIES]
            return {"labels": sorted(found, key=lambda answer: -answer["score"])}
        probabilities = logits_C.softmax(0)
        best = int(probabilities.argmax())
        return {"label": labels[best], "score": probabilities[best].item()}

    def examples(self, items: Iterable[Any], first: int = 1) -> list[Example]:
        """Texts; pairs as tuples or lists of two; or dicts with `text` and perhaps `pair`.

        Raises:
            DataError: anything else, or a pair where the model was trained on single texts, or the other way round.
        """
        return [self._example(item, number) for number, item in enumerate(items, start=first)]

    def _example(self, item: Any, number: int) -> TextExample:
        if isinstance(item, TextExample):
            item = {"text": item.text, "pair": item.pair}
        if isinstance(item, list | tuple) and len(item) == 2:
            item = {"text": item[0], "pair": item[1]}
        found = item if isinstance(item, dict) else {"text": item}
        text, pair = found.get("text"), found.get("pair")
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise DataError(f"item {number} is {item!r:.60}; give a text, or a pair of two texts")
        if self.settings.kind is not None and (pair is None) == (self.settings.kind == "pair"):
            takes = "pairs of texts" if self.settings.kind == "pair" else "single texts"
            raise DataError(
                f"item {number} is {'one text' if pair is None else 'a pair'}, and this model takes {takes}"
            )
        return TextExample(text=text, pair=pair)


def pooled(hidden_TD: Tensor, batch: PackedBatch, pooling: str) -> Tensor:
    """One vector for each document (B, D): its first token's state, or the mean of all."""
    starts_B = batch.cu_seqlens[:-1].long()
    if pooling == "cls":
        return hidden_TD[starts_B]
    lengths_B = batch.cu_seqlens.diff().long()
    documents_T = torch.repeat_interleave(lengths_B, output_size=len(hidden_TD))
    sums_BD = hidden_TD.new_zeros(
        len(lengths_B), hidden_TD.shape[1], dtype=torch.float32
    )  # half precision stalls at 256
    sums_BD = sums_BD.index_add_(0, documents_T, hidden_TD.float())
    return (sums_BD / lengths_B[:, None]).to(hidden_TD.dtype)


def _inputs(example: Example) -> str | tuple[str, str]:
    assert isinstance(example, TextExample)
    return example.text if example.pair is None else (example.text, example.pair)


def _said(example: TextExample) -> dict[str, Any]:
    return {"text": example.text} if example.pair is None else {"text": example.text, "pair": example.pair}
