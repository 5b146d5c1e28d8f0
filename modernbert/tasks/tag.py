"""Texts, or lists of words → a tag for each word, and the entities that these tags say.

    text → words → [CLS] tokens of the words [SEP], in windows → encoder → head → classifier → tags → repaired → spans

As `ModernBertForTokenClassification` has it. What usually goes wrong with entities is right by default here:

- Word boundaries: no token reaches over the border of a word, and the tag of a word is that of its first token. A word that
  gives no token (nothing, or a character that the tokenizer drops) is `O`.
- Spaces: a word after white space, and the first one, is read as after one space, whatever the tokenizer did (see `prefix`);
  a word without white space before it, such as a comma, as the text has it. A list of words has a space between each two,
  but none around characters of scripts that are written without.
- Long texts are read in windows that share `stride` tokens. Each word is learnt, and decided, once: in the window in which it
  has most context on both sides.
- An `I-x` that goes on with nothing begins an entity.

Price: a text of n tokens costs n · max_length / (max_length − stride) tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from modernbert.batch import IGNORE, Feature, PackedBatch
from modernbert.errors import DataError
from modernbert.model.attention import Backend
from modernbert.model.config import ModernBertConfig
from modernbert.tasks.base import TaskOutput
from modernbert.tasks.entities import entity_spans, repair
from modernbert.tasks.head import HeadModel, HeadSettings
from modernbert.tasks.pieces import Window, WordReader
from modernbert.tasks.prefix import with_prefix_space
from modernbert.text.examples import OUTSIDE, Example, TagExample
from modernbert.text.labelled_words import word_spans

_WINDOWS_AT_ONCE = 256  # whose logits are held


class Tagger(HeadModel):
    """Token classification.

    Args:
        config: the encoder's shape.
        tokenizer: of its texts; the model has a copy of it that reads all words as after a space.
        settings: what the head answers; `max_length` and `stride` are those of the windows. `prefix_space` False leaves the
            tokenizer as it is, and reads texts as lists of words given to it one by one: what a folder needs that was
            fine-tuned so elsewhere.
        out_dropout: on each attention block's output while training.
        head_dropout: before the classifier while training.
        backend: of attention.
        encoder: another encoder to stand in the place of one of this shape.
    """

    architecture: ClassVar[str] = "ModernBertForTokenClassification"

    def __init__(
        self,
        config: ModernBertConfig,
        tokenizer: Tokenizer | None,
        settings: HeadSettings,
        *,
        out_dropout: float = 0.0,
        head_dropout: float = 0.0,
        backend: Backend | Literal["auto"] = "auto",
        encoder: nn.Module | None = None,
    ) -> None:
        if tokenizer is not None and settings.prefix_space:
            tokenizer = with_prefix_space(tokenizer)
        super().__init__(
            config, tokenizer, settings, out_dropout=out_dropout, head_dropout=head_dropout, backend=backend, encoder=encoder
        )  # fmt: skip
        self._reader: WordReader | None = None  # once it is needed

    def logits(self, batch: PackedBatch) -> Tensor:
        """(T, C)."""
        return self.classify(self.model(batch))

    def forward(self, batch: PackedBatch) -> TaskOutput:
        """Cross-entropy summed over the labelled tokens, the first of each word, and how many were right."""
        if batch.labels_T is None:  # a rank that has none left
            return TaskOutput(self.logits(batch).sum() * 0.0, 0)
        positions_M = (batch.labels_T != IGNORE).nonzero().squeeze(1)
        labels_M = batch.labels_T[positions_M]
        logits_MC = self.classify(self.model(batch)[positions_M]).float()
        weights = self.loss.class_weights
        weights_C = None if weights is None else logits_MC.new_tensor(weights)
        losses_M = F.cross_entropy(
            logits_MC, labels_M, weights_C, reduction="none", label_smoothing=self.loss.label_smoothing
        )
        correct = (logits_MC.detach().argmax(1) == labels_M).sum()
        return TaskOutput(losses_M.sum(), len(labels_M), {"accuracy": correct}, losses_M.detach())

    def features(self, examples: Sequence[Example]) -> list[Feature]:
        """Tokenise words; each window of a long text is a feature.

        Raises:
            DataError: a tag that the head does not have, or words and tags that do not fit each other or the text.
            ConfigError: windows that share all of their tokens.
        """
        known = {name: index for index, name in enumerate(self.settings.labels)}
        found = []
        targets: tuple[int, np.ndarray | None] = (-1, None)
        for window in self._windows(examples):
            if targets[0] != window.example:
                targets = window.example, self._targets(examples[window.example], known)
            labels_T = None
            if targets[1] is not None:
                labels_T = np.full(len(window.ids_T), IGNORE, dtype=np.int64)
                labels_T[window.places_W] = targets[1][window.words_W]
            found.append(Feature(ids_T=window.ids_T, labels_T=labels_T, example=window.example))
        return found

    def _targets(self, example: Example, known: dict[str, int]) -> np.ndarray | None:
        """The number of each word's tag (W), written as the head's labels are."""
        assert isinstance(example, TagExample)
        if example.tags is None:
            return None
        if len(example.tags) != len(example.spans):
            raise DataError(
                f"{example.where}: {len(example.tags)} tags for {len(example.spans)} words; give each its own"
            )
        repaired = repair(example.tags)
        tags = repaired if known.keys() >= set(repaired) else example.tags  # a head may have labels that are not BIO
        unseen = [tag for tag in tags if tag not in known]
        if unseen:
            raise DataError(f"{example.where}: tag {unseen[0]!r} is none of the model's {len(known)} labels")
        return np.array([known[tag] for tag in tags], dtype=np.int64)

    def _windows(self, examples: Sequence[Example]) -> Iterator[Window]:
        max_length, stride = self.settings.max_length, self.settings.stride
        if self._reader is None or (self._reader.max_length, self._reader.stride) != (max_length, stride):
            self._reader = WordReader(
                self.need_tokenizer(), max_length=max_length, stride=stride, prefix_space=self.settings.prefix_space
            )
        return self._reader.windows(examples)

    def decide(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Of each text a dict with `text`, `entities` and `tags`.

        An entity has `start` and `end` (characters of the text), `text`, `label` (its type) and `score`, the mean probability
        of its words' tags. `tags` has one for each word.
        """
        tags = [[OUTSIDE] * len(_spans(example)) for example in examples]
        scores = [[1.0] * len(_spans(example)) for example in examples]
        windows = self._windows(examples)
        while some := list(itertools.islice(windows, _WINDOWS_AT_ONCE)):
            logits = self.outputs([Feature(ids_T=window.ids_T, example=window.example) for window in some])
            for window, logits_TC in zip(some, logits, strict=True):
                best = torch.from_numpy(logits_TC[window.places_W]).softmax(1).max(1)
                answers = zip(window.words_W.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
                for word, label, score in answers:
                    tags[window.example][word] = self.settings.labels[label]
                    scores[window.example][word] = score
        return [self._answer(*answer) for answer in zip(examples, tags, scores, strict=True)]

    def _answer(self, example: Example, tags: list[str], scores: list[float]) -> dict[str, Any]:
        assert isinstance(example, TagExample)
        entities = []
        for label, first, stop in entity_spans(tags):
            start, end = example.spans[first][0], example.spans[stop - 1][1]
            score = sum(scores[first:stop]) / (stop - first)
            entities.append(
                {"start": start, "end": end, "text": example.text[start:end], "label": label, "score": score}
            )
        is_bio = all(label[:2] in (OUTSIDE, "B-", "I-") for label in self.settings.labels)
        return {"text": example.text, "entities": entities, "tags": repair(tags) if is_bio else tags}

    def answer(self, items: Sequence[Any], examples: Sequence[Example]) -> list[dict[str, Any]]:
        """As `decide`, but `tags` only where an item was given as words.

        Args:
            items: texts, which `word_spans` cuts into words; lists of words; dicts with `text`, or with `words` or `tokens`; or
                `TagExample`s. A list of strings alone is so many texts.
            examples: made of them.
        """
        answers = super().answer(items, examples)
        for item, answer in zip(items, answers, strict=True):
            if isinstance(item, str) or (isinstance(item, dict) and item.get("text") is not None):
                del answer["tags"]
        return answers

    def examples(self, items: Iterable[Any], first: int = 1) -> list[Example]:
        """Texts, lists of words, dicts with `text`, `words` or `tokens`, or `TagExample`s, without their tags.

        Raises:
            DataError: anything else.
        """
        return [_example(item, number) for number, item in enumerate(items, start=first)]


def _example(item: Any, number: int) -> TagExample:
    found = item
    if isinstance(found, TagExample):
        return TagExample(text=found.text, spans=found.spans, where=found.where)
    if isinstance(found, dict):
        found = next((found[key] for key in ("text", "tokens", "words") if found.get(key) is not None), None)
    if isinstance(found, str):
        return TagExample(text=found, spans=word_spans(found), where=f"item {number}")
    if isinstance(found, list | tuple) and all(isinstance(word, str) for word in found):
        return TagExample.from_words(tuple(found), where=f"item {number}")
    raise DataError(f"item {number} is {item!r:.60}; give a text, or the words of one")


def _spans(example: Example) -> tuple[tuple[int, int], ...]:
    assert isinstance(example, TagExample)
    return example.spans
