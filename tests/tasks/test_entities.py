import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from modernbert.tasks.entities import (
    deciding_windows,
    entity_spans,
    num_windows,
    repair,
    span_tags,
)
from modernbert.text.labelled_words import word_spans

tag_lists = st.lists(
    st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y", "E-x", "S-x", "L-y", "U-y", "x", "B", "I"]), max_size=12
)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-x", "I-x", "O", "B-x"], [("x", 0, 2), ("x", 3, 4)]),
        (["I-x", "I-x"], [("x", 0, 2)]),  # nothing to go on with: it begins
        (["B-x", "I-y", "I-x"], [("x", 0, 1), ("y", 1, 2), ("x", 2, 3)]),
        (["B-x", "B-x"], [("x", 0, 1), ("x", 1, 2)]),
        (["B-x", "L-x", "I-x", "U-x", "U-x"], [("x", 0, 2), ("x", 2, 3), ("x", 3, 4), ("x", 4, 5)]),
        (["x", "x", "y"], [("x", 0, 2), ("y", 2, 3)]),  # no prefix at all: neighbours are one
        (["B-a-b", "I-a-b"], [("a-b", 0, 2)]),
        (["B", "I"], [("_", 0, 2)]),
    ],
)
def test_spans_of_tags(tags, spans):
    assert entity_spans(tags) == spans


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y", "E-x", "S-x", "E-y", "B", "I", "B-z-w", "I-z-w"]), max_size=12
    )
)
@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag")
def test_spans_are_those_of_seqeval(tags):
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    theirs = [(kind, first, last + 1) for kind, first, last in seqeval.get_entities(tags)]
    assert entity_spans(tags) == theirs


@settings(deadline=None)
@given(tag_lists)
def test_repaired_tags_are_valid_keep_the_spans_and_are_not_repaired_again(tags):
    repaired = repair(tags)
    assert len(repaired) == len(tags)
    for before, tag in zip(["O", *repaired], repaired, strict=False):
        assert tag == "O" or tag[:2] in ("B-", "I-")
        assert not tag.startswith("I-") or before[1:] == tag[1:]
    assert repair(repaired) == repaired
    assert entity_spans(repaired) == entity_spans(tags)


@settings(deadline=None)
@given(tag_lists)
def test_spans_become_tags_and_tags_the_same_spans(tags):
    spans = entity_spans(tags)
    assert entity_spans(span_tags(spans, len(tags))) == spans


def test_valid_tags_stay_as_they_are():
    tags = ["O", "B-x", "I-x", "B-x", "B-y", "O", "O"]
    assert repair(tags) == tags


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t", []),
        ("Anna lives in New-York.", ["Anna", "lives", "in", "New", "-", "York", "."]),
        ("don't, 3.5 %", ["don", "'", "t", ",", "3", ".", "5", "%"]),
        ("用BERT模型。", ["用", "BERT", "模", "型", "。"]),
        ("cafe\u0301s", ["cafe\u0301s"]),  # an accent of its own is no border
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # nor are vowel signs
        ("a\u200bb \u200b", ["a\u200bb", "\u200b"]),
        ("x\u00a0y\u3000z", ["x", "y", "z"]),
        ("👩\u200d🔬!", ["👩\u200d", "🔬", "!"]),
        ("a_b", ["a", "_", "b"]),
    ],
)
def test_words_of_a_running_text(text, words):
    assert [text[start:stop] for start, stop in word_spans(text)] == words


@settings(deadline=None)
@given(st.text(max_size=30))
def test_every_character_but_white_space_is_in_one_word(text):
    covered = [place for start, stop in word_spans(text) for place in range(start, stop)]
    assert covered == sorted(set(covered))
    assert {place for place, character in enumerate(text) if not character.isspace()} == set(covered)


@st.composite
def words_in_windows(draw):
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=40))
    size = draw(st.integers(1, 15))
    return lengths, size, draw(st.integers(0, size - 1))


@given(words_in_windows())
@settings(max_examples=300, deadline=None)
def test_each_word_is_decided_where_it_has_most_context(case):
    lengths, size, stride = case
    stops = np.cumsum(lengths)
    firsts, total = stops - lengths, int(stops[-1])
    found = deciding_windows(firsts, stops, num_tokens=total, size=size, stride=stride)
    windows = [(k * (size - stride), k * (size - stride) + size) for k in range(num_windows(total, size, stride))]
    assert windows[-1][1] >= total and all(end < total for _, end in windows[:-1])
    for first, stop, number in zip(firsts.tolist(), stops.tolist(), found.tolist(), strict=True):
        contexts = {}
        for k, (begin, end) in enumerate(windows):
            if begin <= first < end:
                left = first - begin if begin > 0 else np.inf
                right = end - stop if end < total else np.inf
                contexts[k] = min(left, right)
        assert number in contexts
        assert contexts[number] == max(contexts.values())


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_windows_are_those_that_the_tokenizer_cuts(num_tokens, size, data):
    stride = data.draw(st.integers(0, size - 1))
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(size, stride=stride)
    encoding = tokenizer.encode("a " * num_tokens)
    assert 1 + len(encoding.overflowing) == num_windows(num_tokens, size, stride)
    assert [len(part.ids) for part in encoding.overflowing[:-1]] == [size] * (len(encoding.overflowing) - 1)
