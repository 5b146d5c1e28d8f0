"""Count models: proper distributions, and the same as a slow twin of dictionaries."""

import collections
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.evaluate.counts import CountModels, Counts

VOCAB_SIZE = 12
CLS, SEP = 10, 11
DISCOUNT = 0.75
NAMES = ("commonest token", "unigram", "left bigram", "both neighbours")


def corpus(count=40, seed=0):
    """A drunkard's walk over the ordinary ids, so that neighbours say something."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        token, row = draw.randrange(10), []
        for _ in range(draw.randint(1, 15)):
            token = (token + draw.choice([1, 1, 1, 2, 5])) % 9  # 9 is never seen
            row.append(token)
        rows.append([CLS, *row, SEP])
    return rows


class SlowCounts:
    """The same four models as dictionaries, one probability at a time."""

    def __init__(self, rows):
        self.unigram, self.pairs = collections.Counter(), {}
        for row in rows:
            for left, token, right in zip(row, row[1:], row[2:], strict=False):
                self.unigram[token] += 1
                for context in (("left", left), ("right", right), ("both", left, right)):
                    self.pairs.setdefault(context, collections.Counter())[token] += 1

    def p_unigram(self, token):
        return (self.unigram[token] + 1) / (sum(self.unigram.values()) + VOCAB_SIZE)

    def p(self, token, context, simpler):
        seen = self.pairs.get(context)
        if not seen:
            return simpler
        total = sum(seen.values())
        return max(0, seen[token] - DISCOUNT) / total + DISCOUNT * len(seen) / total * simpler

    def p_left(self, token, left):
        return self.p(token, ("left", left), self.p_unigram(token))

    def p_both(self, token, left, right):
        behind = self.p(token, ("right", right), self.p_unigram(token))
        return self.p(token, ("both", left, right), (self.p_left(token, left) + behind) / 2)

    def distributions(self, left, right):
        tokens = range(VOCAB_SIZE)
        return {
            "unigram": [self.p_unigram(t) for t in tokens],
            "left bigram": [self.p_left(t, left) for t in tokens],
            "both neighbours": [self.p_both(t, left, right) for t in tokens],
        }


def targets_of(rows):
    return [triple for row in rows for triple in zip(row, row[1:], row[2:], strict=False)]


@pytest.mark.parametrize("seen_neighbours", [True, False])
def test_scores_are_those_of_the_slow_twin(seen_neighbours):
    train, test = corpus(seed=0), corpus(15, seed=1)
    # Held-out triples, many of them with neighbours that training never showed; or training's own.
    targets = targets_of(train if seen_neighbours else test)
    fast, slow = CountModels(train, VOCAB_SIZE).score(targets), SlowCounts(train)
    loss, hits = collections.Counter(), collections.Counter()
    commonest = max(range(VOCAB_SIZE), key=slow.p_unigram)
    for left, token, right in targets:
        hits["commonest token"] += token == commonest
        for name, probs in slow.distributions(left, right).items():
            loss[name] -= math.log(probs[token])
            hits[name] += int(np.argmax(probs)) == token
    assert tuple(fast) == NAMES
    assert fast["commonest token"]["loss"] is None
    for name in NAMES:
        assert fast[name]["accuracy"] == pytest.approx(hits[name] / len(targets), abs=0.02)  # ties
        if name in loss:
            assert fast[name]["loss"] == pytest.approx(loss[name] / len(targets), rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=20),
    left=st.integers(0, VOCAB_SIZE - 1),
    right=st.integers(0, VOCAB_SIZE - 1),
)
def test_probabilities_are_positive_and_add_up_to_one(rows, left, right):
    models = CountModels([np.array([CLS, *row, SEP]) for row in rows], VOCAB_SIZE)
    before = models._left.discounted(left, models.unigram_V)
    behind = models._right.discounted(right, models.unigram_V)
    both = models._both.discounted(left * VOCAB_SIZE + right, (before + behind) / 2)
    for probs in (models.unigram_V, before, behind, both):
        assert probs.sum() == pytest.approx(1, abs=1e-12)
        assert (probs > 0).all()
    slow = SlowCounts([[CLS, *row, SEP] for row in rows]).distributions(left, right)
    assert both == pytest.approx(slow["both neighbours"], rel=1e-9)


def test_asking_leaves_the_simpler_model_as_it_was():
    models = CountModels(corpus(), VOCAB_SIZE)
    before = models.unigram_V.copy()
    models.score(targets_of(corpus()))
    assert (models.unigram_V == before).all()


def test_counts_are_of_pairs():
    counts = Counts.of(np.array([1, 1, 1, 2]), np.array([0, 0, 3, 3]), 4)
    assert counts.keys.tolist() == [4, 7, 11] and counts.counts.tolist() == [2, 1, 1]
    assert counts.discounted(1, np.full(4, 0.25)).tolist() == pytest.approx(
        [0.125 + 1.25 / 3, 0.125, 0.125, 0.125 + 0.25 / 3]
    )
    simpler = np.full(4, 0.25)
    assert counts.discounted(0, simpler) is simpler  # never seen: nothing but the simpler one is known


def test_a_full_vocabulary_does_not_overflow():
    size = 50_368
    row = np.array([size - 1, size - 2, size - 3, size - 2, size - 1])
    models = CountModels([row], size)
    scores = models.score([(size - 3, size - 2, size - 1)])
    assert scores["both neighbours"]["accuracy"] == 1
    assert scores["both neighbours"]["loss"] < -math.log(0.25)


def test_more_context_guesses_better_where_neighbours_say_something():
    scores = CountModels(corpus(2000), VOCAB_SIZE).score(targets_of(corpus(100, seed=1)))
    assert scores["both neighbours"]["loss"] < scores["left bigram"]["loss"] < scores["unigram"]["loss"]
    assert scores["both neighbours"]["accuracy"] > scores["left bigram"]["accuracy"] > scores["unigram"]["accuracy"]
    assert scores["unigram"]["accuracy"] == scores["commonest token"]["accuracy"]


def test_a_sequence_of_one_token_counts():
    models = CountModels([np.array([CLS, 3, SEP])], VOCAB_SIZE)
    assert models.unigram_V.argmax() == 3
    assert models.score([(CLS, 3, SEP)])["both neighbours"]["accuracy"] == 1
