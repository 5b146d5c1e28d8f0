"""Small tokenizers and texts, made once."""

import random

import pytest

from modernbert.text.bpe import train_tokenizer

WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "green", "hills", "and", "birds"),
    *("sang", "in", "tall", "old", "trees", "near", "rivers"),
)


def sentences(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 30))).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="session")
def corpus():
    return sentences(300)


@pytest.fixture(scope="session")
def tokenizer(corpus):
    return train_tokenizer(corpus, vocab_size=320)
