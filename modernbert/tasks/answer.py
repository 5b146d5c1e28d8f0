"""Questions and passages → the part of the passage that answers, or that there is none.

    [CLS] question [SEP] window of the passage [SEP]    → encoder → head → classifier → start and end logit of each token

Each window is a document of a packed batch; start and end are each chosen among all of its tokens, and the first one
stands for "no answer here". `ModernBertForQuestionAnswering` has the same logits; its loss of padded rows also counts the
padding as places where an answer could be, which is not done here. A long passage is read in windows (`tasks.spans`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from modernbert.batch import Feature, PackedBatch
from modernbert.errors import ConfigError, DataError
from modernbert.model.config import ModernBertConfig
from modernbert.tasks.base import TaskOutput
from modernbert.tasks.head import HeadModel, HeadSettings, LossSettings
from modernbert.tasks.spans import Found, Passage, Window, best_span, passages_of, windows_of
from modernbert.text.examples import AnswerExample, Example

log = logging.getLogger(__name__)

LABELS = ("start", "end")
MAX_LENGTH, STRIDE = 384, 128  # as the SQuAD scripts of BERT and transformers have it
_ANSWERS = "modernbert_answers"  # in config.json: how an answer is chosen
_LEAST_ANSWER_TOKENS = 30  # as the SQuAD scripts; as bytes of Chinese that is a short clause (`adapt`)
_ANSWERS_WITHIN = 99  # percent of the training answers that are no longer than what is allowed


class Answerer(HeadModel):
    """Extractive question answering.

    Attributes:
        may_abstain: whether "no answer" may be said; for models that were trained on questions without one.
        null_threshold: how much higher than the best answer "no answer" must be to be said, in logits.
        max_answer_tokens: longer spans are not considered.
    """

    architecture: ClassVar[str] = "ModernBertForQuestionAnswering"

    def __init__(
        self, config: ModernBertConfig, tokenizer: Tokenizer | None, settings: HeadSettings, **how: Any
    ) -> None:
        """As `HeadModel`; what `config` says of choosing answers, if anything, is taken over."""
        if len(settings.labels) != len(LABELS):
            raise ConfigError(
                f"{len(settings.labels)} labels for question answering; it has 2 outputs, start and end, and no others"
            )
        chosen = config.extra.get(_ANSWERS) or {}
        super().__init__(config, tokenizer, settings, **how)
        self.may_abstain = bool(chosen.get("may_abstain", False))
        self.null_threshold = float(chosen.get("null_threshold", 0.0))
        self.max_answer_tokens = int(chosen.get("max_answer_tokens", _LEAST_ANSWER_TOKENS))

    def adapt(self, examples: Sequence[Example]) -> None:
        """Choose answers as training examples have them: whether there may be none, and how long they may be.

        Raises:
            DataError: an answer that is not in its passage at its place.
        """
        asked = _asked(examples)
        passages = passages_of((example.context for example in asked), self.need_tokenizer())
        found = [passages[example.context].tokens_of(example) for example in asked if example.answers]
        longest = np.percentile([last - first + 1 for first, last in found], _ANSWERS_WITHIN) if found else 0
        self.may_abstain = any(example.answers == () for example in asked)
        self.max_answer_tokens = max(_LEAST_ANSWER_TOKENS, int(np.ceil(longest)))

    @property
    def config(self) -> ModernBertConfig:
        """As of every head, and how an answer is chosen."""
        config = super().config
        chosen = {name: getattr(self, name) for name in ("may_abstain", "null_threshold", "max_answer_tokens")}
        return config.replace(extra={**config.extra, _ANSWERS: chosen})

    def logits(self, batch: PackedBatch) -> Tensor:
        """(T, 2): how well an answer begins at each token, and how well it ends there."""
        return self.classify(self.model(batch))

    def forward(self, batch: PackedBatch) -> TaskOutput:
        """Mean of the cross-entropies of start and end, summed over documents; accuracy: both are right.

        Raises:
            ConfigError: class weights or label smoothing, which are of classes.
        """
        if self.loss != LossSettings():
            raise ConfigError(f"{self.loss}: question answering has no classes to weigh or smooth; leave both out")
        logits_T2 = self.logits(batch).float()
        if batch.targets_B is None:  # a rank that has none left
            return TaskOutput(logits_T2.sum() * 0.0, 0)
        at_target_B2 = logits_T2.gather(0, batch.cu_seqlens[:-1, None].long() + batch.targets_B)
        top_B2, log_sums_B2 = segment_log_sums(logits_T2, batch)
        losses_B = (log_sums_B2 - at_target_B2).mean(1)
        right = (at_target_B2.detach() == top_B2).all(1).sum()
        return TaskOutput(losses_B.sum(), len(losses_B), {"accuracy": right}, losses_B.detach())

    def features(self, examples: Sequence[Example]) -> list[Feature]:
        """The windows of each example, with the first of its answers where it is labelled.

        The target of a window that does not hold all of that answer is "no answer here". An answer that no window holds,
        being too long, is logged.

        Raises:
            DataError: an answer that is not in its passage at its place.
            ConfigError: `stride` does not fit `max_length`.
        """
        asked = _asked(examples)
        passages, windows = self._windows(asked)
        features, num_lost = [], 0
        for example, passage, of_example in zip(asked, passages, windows, strict=True):
            if example.answers is None:
                features += [Feature(ids_T=window.ids_T, example=window.example) for window in of_example]
                continue
            tokens = passage.tokens_of(example) if example.answers else None
            targets = [window.target(tokens) for window in of_example]
            num_lost += tokens is not None and not np.any(targets)
            for window, target in zip(of_example, targets, strict=True):
                features.append(Feature(ids_T=window.ids_T, target=target, example=window.example))
        if num_lost:
            log.warning(
                "%s of %s answers are too long for any window of %s tokens that share %s, and are learnt as none; "
                "raise stride or max_length",
                *(f"{n:,}" for n in (num_lost, len(examples), self.settings.max_length, self.settings.stride)),
            )
        return features

    def _windows(self, asked: Sequence[AnswerExample]) -> tuple[list[Passage], list[list[Window]]]:
        settings = self.settings
        return windows_of(asked, self.need_tokenizer(), max_length=settings.max_length, stride=settings.stride)

    def decide(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Of each question a dict.

        `question` (and `id`, where it has one), `answer`, its first character `start` in the passage and `end` behind its
        last one, `score` (its probability among all spans and no answer), and `no_answer_score`. Without an answer
        `answer`, `start` and `end` are None and `score` is that of no answer: where the model may abstain and does, or
        where the passage is empty.
        """
        asked = _asked(examples)
        passages, windows = self._windows(asked)
        flat = [window for of_example in windows for window in of_example]
        logits = iter(self.outputs([Feature(ids_T=window.ids_T, example=window.example) for window in flat]))
        answers = []
        for example, passage, of_example in zip(asked, passages, windows, strict=True):
            found = best_span(passage, of_example, [next(logits) for _ in of_example], self.max_answer_tokens)
            answers.append(_named(example) | self._answer(example, found))
        return answers

    def _answer(self, example: AnswerExample, found: Found) -> dict[str, Any]:
        abstains = self.may_abstain and -found.advantage > self.null_threshold
        start, end = (None, None) if abstains or found.characters is None else found.characters
        return {
            "answer": None if start is None else example.context[start:end],
            "start": start,
            "end": end,
            "score": found.no_answer_score if start is None else found.score,
            "no_answer_score": found.no_answer_score,
        }

    def examples(self, items: Iterable[Any], first: int = 1) -> list[Example]:
        """Pairs (question, passage) as tuples or lists; or dicts with `question` and `context`, and perhaps `id`.

        Raises:
            DataError: anything else.
        """
        return [_example(item, number) for number, item in enumerate(items, start=first)]


def segment_log_sums(x_TC: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Of each document the highest value (B, C), without gradient, and the logarithm of the sum of exponentials (B, C)."""
    lengths_B = batch.cu_seqlens.diff().long()
    documents_T = torch.repeat_interleave(
        torch.arange(len(lengths_B), device=x_TC.device), lengths_B, output_size=len(x_TC)
    )
    index_TC = documents_T[:, None].expand_as(x_TC)
    top_BC = x_TC.new_full((len(lengths_B), x_TC.shape[1]), -torch.inf)
    top_BC = top_BC.scatter_reduce(0, index_TC, x_TC.detach(), "amax")
    sums_BC = torch.zeros_like(top_BC).index_add(0, documents_T, (x_TC - top_BC[documents_T]).exp())
    return top_BC, top_BC + sums_BC.log()


def _example(item: Any, number: int) -> AnswerExample:
    if isinstance(item, AnswerExample):
        return AnswerExample(question=item.question, context=item.context, id=item.id)
    if isinstance(item, list | tuple) and len(item) == 2:
        item = {"question": item[0], "context": item[1]}
    found = item if isinstance(item, dict) else {}
    question, context, name = found.get("question"), found.get("context"), found.get("id")
    if not isinstance(question, str) or not isinstance(context, str):
        raise DataError(
            f"item {number} is {item!r:.60}; give a list of pairs (question, passage), or of dicts with question and context"
        )
    return AnswerExample(question=question, context=context, id="" if name is None else str(name))


def _asked(examples: Sequence[Example]) -> list[AnswerExample]:
    asked = [example for example in examples if isinstance(example, AnswerExample)]
    assert len(asked) == len(examples)
    return asked


def _named(example: AnswerExample) -> dict[str, Any]:
    return ({"id": example.id} if example.id else {}) | {"question": example.question}
