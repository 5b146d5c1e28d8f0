"""What the tokenizer report counts."""

import pytest

from modernbert.errors import DataError
from modernbert.text.bpe import train_tokenizer
from modernbert.text.report import format_report, tokenizer_report


def test_words_given_pre_split_change_only_without_a_prefix_space(tokenizer, corpus):
    plain = train_tokenizer(corpus, vocab_size=320, prefix_space=False)
    report = tokenizer_report(tokenizer, corpus, against=("plain", plain))
    changed = {name: row["presplit_share_of_words_changed"] for name, row in report["tokenizers"].items()}
    assert changed["this"] == 0
    assert changed["plain"] > 0.5


def test_counts_are_of_the_texts_and_nothing_is_unknown(tokenizer):
    report = tokenizer_report(tokenizer, ["the cat  sat\n", "日本"])
    row = report["tokenizers"]["this"]
    assert (report["documents"], report["bytes"], report["characters"], report["words"]) == (2, 19, 15, 4)
    assert row["unknown_tokens"] == 0
    assert row["tokens_per_word"] == row["tokens"] / 4
    assert row["bytes_per_token"] == 19 / row["tokens"]


def test_the_table_has_a_column_per_tokenizer_and_lines_of_one_width(tokenizer, corpus):
    report = tokenizer_report(tokenizer, corpus[:5], against=("other", tokenizer))
    lines = format_report(report).splitlines()[2:]
    assert "this" in lines[0] and "other" in lines[0]
    assert len({len(line) for line in lines}) == 1


def test_no_words_are_refused(tokenizer):
    with pytest.raises(DataError, match="without a word"):
        tokenizer_report(tokenizer, ["", " "])
