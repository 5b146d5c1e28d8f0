"""Long texts are cut where no token is, whatever the tokenizer and the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from modernbert.text.bpe import train_tokenizer
from modernbert.text.cut import Cutter
from modernbert.text.filters import Filters, Looker
from modernbert.text.tokenizer import for_plain_text

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = st.sampled_from(
    [
        *"aex17'._-,(。、字か ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "the",
        " the",
        " cat",
        "'s",
        "é",
        "e\u0301",
        "\u00a0",
        "🙂",
        "[MASK]",
    ]
)
TEXTS = st.lists(PIECES, min_size=20, max_size=120).map("".join)


def other_splits(tokenizer, pre_tokenizer, normalizer=None):
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.pre_tokenizer = pre_tokenizer
    changed.normalizer = normalizer or changed.normalizer
    return for_plain_text(changed)


@pytest.fixture(scope="module")
def tokenizers(corpus):
    own = train_tokenizer(corpus, vocab_size=320)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = {
        "own": for_plain_text(own),
        "own without a first space": for_plain_text(train_tokenizer(corpus, vocab_size=320, prefix_space=False)),
        "ByteLevel's prefix": other_splits(own, pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "GPT-4's pattern": other_splits(
            own, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4), "isolated"), level])
        ),
        "NFKC, whitespace": other_splits(
            own, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), level]), normalizers.NFKC()
        ),
    }
    return {name: (tokenizer, Cutter(tokenizer)) for name, tokenizer in made.items()}


@pytest.mark.parametrize(
    "name", ["own", "own without a first space", "ByteLevel's prefix", "GPT-4's pattern", "NFKC, whitespace"]
)
@given(text=TEXTS, block_chars=st.integers(4, 40))
@settings(max_examples=100, deadline=None)
def test_blocks_give_the_ids_of_the_whole_text(tokenizers, name, text, block_chars):
    tokenizer, cutter = tokenizers[name]
    blocks = cutter.cut(text, block_chars)
    encodings = [tokenizer.encode(block, add_special_tokens=False) for block in blocks.texts]
    ids = cutter.join(blocks, [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings])
    assert len(blocks.texts) > 1 or len(text) <= block_chars
    if not blocks.num_forced:
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert (
        "".join(block[dropped > 0 :] for block, dropped in zip(blocks.texts, blocks.num_dropped, strict=True)) == text
    )


def test_a_run_without_a_place_to_cut_is_cut_and_counted(tokenizers):
    _, cutter = tokenizers["own"]
    assert cutter.cut("a" * 35, 10).num_forced == 3
    assert cutter.cut("aaaa bbbb cccc dddd", 10).num_forced == 0
    assert cutter.cut("字字字。" * 5, 10).num_forced == 0


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Metaspace(split=False),
        pre_tokenizers.Digits(),
    ],
)
def test_a_tokenizer_that_joins_words_is_never_given_blocks(tokenizer, pre_tokenizer):
    joining = Tokenizer.from_str(tokenizer.to_str())
    if pre_tokenizer is None:
        joining = Tokenizer(joining.model)
    else:
        joining.pre_tokenizer = pre_tokenizer
    blocks = Cutter(joining).cut("the cat sat " * 20, 50)
    assert blocks.is_uncut and len(blocks.texts) == 1


def test_an_added_token_across_a_place_to_cut_forbids_it(tokenizer):
    plain = for_plain_text(tokenizer)
    plain.add_tokens(["New York"])
    assert Cutter(plain).cut("the cat" * 5 + " sat" * 5, 8).num_forced > 0


def test_a_long_text_among_short_ones_keeps_its_place(tokenizer, monkeypatch):
    monkeypatch.setattr("modernbert.text.cut.Cutter.cut.__defaults__", (50,))
    plain = for_plain_text(tokenizer)
    texts = ["the cat", "green hills " * 40, "", "dogs ran over " * 30, "a mat"]
    looker = Looker(plain, Filters(), None, batch_chars=120)
    assert [ids.tolist() for ids in looker.tokenise(texts)] == [
        plain.encode(text, add_special_tokens=False).ids for text in texts
    ]
    assert [found.ids.tolist() for found in looker.look(texts)] == [ids.tolist() for ids in looker.tokenise(texts)]
