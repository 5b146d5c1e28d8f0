"""A text is cut where its structure allows; nothing is lost, nothing is doubled, and each passage is where it says."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.retrieval.chunks import chunks_of, structure_of

STRUCTURES = ("python", "markup", "code", "prose")
PYTHON = '''"""A module."""

import os

LIMIT = 3


# what it is for
@decorated(1)
def first(x):
    """Doc."""
    return x


class Kept:
    """Holds."""

    size = 1

    def inside(self):
        return self.size

    async def later(self):
        def nested():
            return 1
        return nested


if True:
    def conditional():
        pass
'''
MARKUP = """Before all.

# One

Text of one.

```
# no title

code
```

## Deeper

Text below.

Under
=====

Last words.
"""


def words_of(text):
    return "".join(text.split())


def check(text, chunks, tokenizer, max_tokens):
    assert [text[c.start : c.end] for c in chunks] == [c.text for c in chunks]
    assert words_of("".join(c.text for c in chunks)) == words_of(text), "all but white space is there, once"
    assert all(a.end <= b.start for a, b in itertools.pairwise(chunks))
    assert all(c.text == c.text.strip() and c.text for c in chunks)
    lengths = [len(tokenizer.encode(c.text, add_special_tokens=False)) for c in chunks]
    # A cut may part what were fewer tokens together, and the beginning of a text counts as one behind a space.
    assert all(length <= max_tokens + 3 for length in lengths)


@pytest.mark.parametrize("structure", STRUCTURES)
@given(text=st.text(st.sampled_from("ab \n#=`.é任\t()def:"), max_size=300), max_tokens=st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_every_character_is_in_one_passage(tiny_tokenizer, structure, text, max_tokens):
    check(text, chunks_of(text, structure, tiny_tokenizer, max_tokens), tiny_tokenizer, max_tokens)


def test_python_is_cut_into_functions_under_their_names(tiny_tokenizer):
    chunks = chunks_of(PYTHON, "python", tiny_tokenizer, 200)
    check(PYTHON, chunks, tiny_tokenizer, 200)
    named = {c.heading: c.text for c in chunks if c.heading}
    assert list(named) == ["first", "Kept.inside", "Kept.later", "conditional"]
    assert named["first"].startswith("# what it is for\n@decorated(1)\ndef first")
    assert "nested" in named["Kept.later"] and "return self.size" in named["Kept.inside"]
    assert any("LIMIT" in c.text for c in chunks if not c.heading)


def test_python_that_does_not_parse_is_cut_all_the_same(tiny_tokenizer):
    text = "def f(:\n    pass\n\nprint 'two'\n" * 20
    chunks = chunks_of(text, "python", tiny_tokenizer, 40)
    assert len(chunks) > 2
    check(text, chunks, tiny_tokenizer, 40)


def test_markup_keeps_to_its_sections_and_says_their_titles(tiny_tokenizer):
    chunks = chunks_of(MARKUP, "markup", tiny_tokenizer, 200)
    check(MARKUP, chunks, tiny_tokenizer, 200)
    assert [(c.heading, c.text.split()[0]) for c in chunks] == [
        ("", "Before"), ("One", "#"), ("One > Deeper", "##"), ("Under", "Under"),
    ]  # fmt: skip
    assert "# no title\n\ncode" in chunks[1].text, "fenced code is one block, and its comments are no titles"


def test_paragraphs_are_joined_while_they_fit_and_cut_at_sentences_where_they_do_not(tiny_tokenizer):
    text = "Old stone. " * 3 + "\n\n" + "The river walks. " * 40
    chunks = chunks_of(text, "prose", tiny_tokenizer, 60)
    check(text, chunks, tiny_tokenizer, 60)
    assert chunks[0].text == "Old stone. Old stone. Old stone."
    assert all(c.text.endswith("walks.") for c in chunks[1:])


@pytest.mark.parametrize(
    "text", ["the old stone and the river " * 30, ("word" + "\n" * 40) * 30, ("a" + " \n" * 60) * 9]
)
def test_words_are_not_lost_where_their_token_begins_with_a_space(tiny_tokenizer, text):
    for max_tokens in range(20, 41):
        check(text, chunks_of(text, "prose", tiny_tokenizer, max_tokens), tiny_tokenizer, max_tokens)


def test_a_word_without_end_is_cut_between_tokens(tiny_tokenizer):
    text = "x" * 500
    chunks = chunks_of(text, "prose", tiny_tokenizer, 50)
    assert len(chunks) > 5
    check(text, chunks, tiny_tokenizer, 50)


@pytest.mark.parametrize("text", ["", " \n\t\n "])
def test_white_space_alone_is_no_passage(tiny_tokenizer, text):
    assert chunks_of(text, "prose", tiny_tokenizer, 20) == []


def test_structure_follows_from_the_name():
    names = ["a.py", "b.MD", "c.rst", "d.rs", "e.txt", "f"]
    assert [structure_of(name) for name in names] == ["python", "markup", "markup", "code", "prose", "prose"]
