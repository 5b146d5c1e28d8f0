"""Training tokens → count models that guess a masked token from its neighbours: what an encoder has to beat.

Four of them: always the commonest token; token frequencies (unigram); the token to the left (bigram); the tokens
on both sides. Probabilities are interpolated by absolute discounting (Ney, Essen and Kneser, 1994): each count
gives up 0.75, and what is freed goes to the next simpler model; for both neighbours that is the mean of left and
right bigram.

The count models are shown the true neighbours, even where the encoder finds a mask or a random token, so the
comparison leans their way. Price: some 60 bytes of memory a training token, 0.1 ms a guess at 8,192 entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_DISCOUNT = 0.75


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each token followed each context; contexts are integers."""

    keys: np.ndarray  # context · V + token, sorted
    counts: np.ndarray
    vocab_size: int

    @classmethod
    def of(cls, contexts: np.ndarray, tokens: np.ndarray, vocab_size: int) -> Counts:
        """Count (context, token) pairs."""
        keys, counts = np.unique(contexts * vocab_size + tokens, return_counts=True)
        return cls(keys, counts, vocab_size)

    def discounted(self, context: int, simpler_V: np.ndarray) -> np.ndarray:
        """P(token | context) over the vocabulary, falling back on a simpler distribution."""
        first, last = np.searchsorted(self.keys, [context * self.vocab_size, (context + 1) * self.vocab_size])
        if first == last:
            return simpler_V
        counts = self.counts[first:last]
        probs_V = simpler_V * (_DISCOUNT * len(counts) / counts.sum())
        probs_V[self.keys[first:last] % self.vocab_size] += (counts - _DISCOUNT) / counts.sum()
        return probs_V


class CountModels:
    """The four models, fitted.

    Args:
        sequences: training sequences as the encoder sees them, [CLS] and [SEP] included.
        vocab_size: V.
    """

    def __init__(self, sequences: Iterable[np.ndarray], vocab_size: int) -> None:
        rows = [np.asarray(ids, dtype=np.int64) for ids in sequences]
        left = np.concatenate([row[:-2] for row in rows])
        token = np.concatenate([row[1:-1] for row in rows])
        right = np.concatenate([row[2:] for row in rows])
        frequency_V = np.bincount(token, minlength=vocab_size)
        self.vocab_size = vocab_size
        self.unigram_V = (frequency_V + 1) / (len(token) + vocab_size)
        self._left = Counts.of(left, token, vocab_size)
        self._right = Counts.of(right, token, vocab_size)
        self._both = Counts.of(left * vocab_size + right, token, vocab_size)

    def score(self, targets: Iterable[tuple[int, int, int]]) -> dict[str, dict[str, float | None]]:
        """Mean loss (nats) and top-1 accuracy of each model.

        Args:
            targets: (left neighbour, hidden token, right neighbour).
        """
        loss = dict.fromkeys(("unigram", "left bigram", "both neighbours"), 0.0)
        right_guesses = dict.fromkeys(("commonest token", *loss), 0)
        commonest, total = int(self.unigram_V.argmax()), 0
        for left, token, right in targets:
            before_V = self._left.discounted(left, self.unigram_V)
            behind_V = self._right.discounted(right, self.unigram_V)
            both_V = self._both.discounted(left * self.vocab_size + right, (before_V + behind_V) / 2)
            for name, probs_V in zip(loss, (self.unigram_V, before_V, both_V), strict=True):
                loss[name] -= float(np.log(probs_V[token]))
                right_guesses[name] += int(probs_V.argmax() == token)
            right_guesses["commonest token"] += commonest == token
            total += 1
        return {
            name: {"loss": loss[name] / total if name in loss else None, "accuracy": count / total}
            for name, count in right_guesses.items()
        }
