"""Near-duplicates: found where texts share most of their runs of words, left alone where they do not."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.errors import ConfigError
from modernbert.text.near import NearDuplicates, bands, signature
from modernbert.text.words import blockwise_ngram_hashes, is_unspaced, ngram_hashes, split_words, word_blocks


def text_of(seed, num_words=200, words=5000):
    return " ".join(f"w{number}" for number in random.Random(seed).choices(range(words), k=num_words))


def with_changes(text, count, join=" "):
    words = text.split() if join else list(text)
    for place in range(count):
        words[(place * 37 + 5) % len(words)] = "other" if join else "马"
    return join.join(words)


def jaccard(one, other):
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in map(split_words, (one, other)))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("changes", [0, 1, 2, 4, 8, 16])
def test_a_signature_estimates_the_share_of_runs_in_common(changes):
    pairs = [(text_of(seed), with_changes(text_of(seed), changes)) for seed in range(20)]
    estimates = [(signature(one) == signature(other)).mean() for one, other in pairs]
    truth = [jaccard(one, other) for one, other in pairs]
    assert np.abs(np.mean(estimates) - np.mean(truth)) < 0.03
    assert np.abs(np.subtract(estimates, truth)).max() < 0.16  # four standard errors of one estimate


def test_copies_with_small_changes_are_found_and_other_texts_are_not():
    near = NearDuplicates(0.8)
    for seed in range(50):
        assert near.find(signature(text_of(seed)), str(seed)) is None
    for seed in range(50):
        name, alike = near.find(signature(with_changes(text_of(seed), 2).upper() + "!!"), "copy")
        assert name == str(seed) and alike > 0.8
        assert near.find(signature(with_changes(text_of(seed), 40)), f"kept {seed}") is None


def test_chinese_is_compared_by_characters():
    draw = random.Random(0)
    text = "".join(chr(draw.randrange(0x4E00, 0x5E00)) for _ in range(300))
    assert is_unspaced(split_words(text)) and len(split_words(text)) == 300
    near = NearDuplicates(0.8)
    assert near.find(signature(text), "a") is None
    assert near.find(signature(with_changes(text, 3, join="")), "b") is not None
    assert near.find(signature(text[::-1]), "c") is None


def test_a_text_without_words_has_no_signature_and_a_short_one_is_its_own_run():
    assert signature("... !!!") is None
    assert (signature("The cat.") == signature("the CAT")).all()
    assert not (signature("the cat") == signature("the dog")).all()


def test_signatures_are_the_same_on_every_machine():
    # Another number here means that an unfinished build cannot go on: raise the version that `needs_rensa` names.
    assert signature("the quick brown fox jumps over the lazy dog")[:2].tolist() == [3773446217, 3422505556]


def test_an_index_larger_than_its_cache_forgets_nothing(tmp_path):
    near = NearDuplicates(0.8, tmp_path, cache_bytes=2**16)
    signatures = [signature(text_of(seed, num_words=20)) for seed in range(600)]
    assert all(near.find(one, str(number)) is None for number, one in enumerate(signatures))
    assert [near.find(one, "")[0] for one in signatures] == [str(number) for number in range(600)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_99_of_100_pairs_at_the_threshold(threshold):
    count, rows = bands(threshold)
    assert count * rows <= 128
    assert 1 - (1 - threshold**rows) ** count >= 0.99


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_a_threshold_that_is_no_similarity_is_refused(threshold):
    with pytest.raises(ConfigError, match="near_duplicates="):
        NearDuplicates(threshold)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 14))
@settings(max_examples=200, deadline=None)
def test_runs_have_equal_hashes_exactly_where_their_words_are_equal(words, num_words):
    hashes = ngram_hashes(np.array(words, dtype=np.uint64), num_words)
    length = min(num_words, len(words))
    runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)] if words else []
    assert len(hashes) == len(runs)
    assert len(set(hashes.tolist())) == len(set(runs))


@given(st.text("ab 字。'Σσ", max_size=60), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_words_are_the_same_when_a_text_is_read_in_blocks(text, block_chars):
    assert [word for block in word_blocks(text, block_chars) for word in block] == split_words(text)


@pytest.mark.parametrize("num_words", [1, 5, 13])
def test_runs_across_blocks_are_not_lost(num_words, monkeypatch):
    monkeypatch.setattr("modernbert.text.words.word_blocks.__defaults__", (20,))
    text = text_of(0, num_words=100)
    numbers = lambda words: np.array([int(word[1:]) for word in words], dtype=np.uint64)  # noqa: E731
    found = np.concatenate(list(blockwise_ngram_hashes(text, numbers, num_words)))
    assert found.tolist() == ngram_hashes(numbers(split_words(text)), num_words).tolist()
    assert list(blockwise_ngram_hashes("one two", lambda words: numbers(["w1"] * len(words)), 3)) == []
