"""A tokenizer and texts -> how well the one fits the other, beside a baseline.

Price: the texts are tokenised once whole and once word by word, and walked in Python: about 2 s per megabyte.
Give it a sample.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from modernbert.errors import DataError
from modernbert.text.tokenizer import num_ids, special_ids

_WORD = re.compile(r"\S+")
_ROWS = (
    ("vocabulary", "vocab_size", "{:,}"),
    ("tokens", "tokens", "{:,}"),
    ("tokens per word (fertility)", "tokens_per_word", "{:.3f}"),
    ("bytes per token", "bytes_per_token", "{:.3f}"),
    ("characters per token", "characters_per_token", "{:.3f}"),
    ("unknown tokens", "unknown_tokens", "{:,}"),
    ("words split into more than one token", "share_of_words_split", "{:.1%}"),
    ("tokens per word, given pre-split", "presplit_tokens_per_word", "{:.3f}"),
    ("words split, given pre-split", "presplit_share_of_words_split", "{:.1%}"),
    ("words that get other ids when given pre-split", "presplit_share_of_words_changed", "{:.1%}"),
)


def tokenizer_report(
    tokenizer: Tokenizer, texts: Iterable[str], *, against: tuple[str, Tokenizer] | None = None
) -> dict[str, Any]:
    """Measure a tokenizer on texts, and a second one beside it.

    A word is a run of non-space characters. Scripts without spaces have few; read their characters per token.

    Args:
        tokenizer: the one in question, "this" in the report.
        texts: a sample, held in memory.
        against: a name and a tokenizer to compare with.

    Returns:
        Plain data: counts of the texts, and under "tokenizers" one row per tokenizer, shares between 0 and 1.

    Raises:
        DataError: no text at all.
    """
    texts = list(texts)
    words = [[(match.start(), match.group()) for match in _WORD.finditer(text)] for text in texts]
    counts = {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "characters": sum(map(len, texts)),
        "words": sum(map(len, words)),
    }
    if not counts["words"]:
        raise DataError(f"{len(texts)} texts without a word in them; give text to measure a tokenizer on")
    rows = [("this", tokenizer)] + ([against] if against else [])
    return counts | {"tokenizers": {name: _measure(one, texts, words, counts) for name, one in rows}}


def format_report(report: dict[str, Any]) -> str:
    """Lay a report out as a Markdown table, one column per tokenizer."""
    columns = report["tokenizers"]
    table = [["", *columns]]
    table += [[label, *(form.format(row[key]) for row in columns.values())] for label, key, form in _ROWS]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) + " |" for cells in table
    ]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    counts = ", ".join(f"{report[key]:,} {key}" for key in ("documents", "bytes", "characters", "words"))
    return "\n".join([counts, "", lines[0], rule, *lines[1:]])


def _measure(
    tokenizer: Tokenizer, texts: list[str], words: list[list[tuple[int, str]]], counts: dict[str, int]
) -> dict[str, int | float]:
    unk = special_ids(tokenizer).unk
    whole = tokenizer.encode_batch(texts, add_special_tokens=False)
    presplit = tokenizer.encode_batch(
        [[word for _, word in text_words] for text_words in words],
        is_pretokenized=True,
        add_special_tokens=False,
    )
    num_tokens = sum(len(encoding.ids) for encoding in whole)
    num_split = num_presplit_tokens = num_presplit_split = num_changed = 0
    for text, text_words, encoding, split_encoding in zip(texts, words, whole, presplit, strict=True):
        ids_whole = _ids_by_word(text, [start for start, _ in text_words], encoding)
        ids_split: list[list[int]] = [[] for _ in text_words]
        for token_id, word in zip(split_encoding.ids, split_encoding.word_ids, strict=True):
            assert word is not None  # no special tokens were added
            ids_split[word].append(token_id)
        num_presplit_tokens += len(split_encoding.ids)
        num_split += sum(len(ids) > 1 for ids in ids_whole)
        num_presplit_split += sum(len(ids) > 1 for ids in ids_split)
        num_changed += sum(a != b for a, b in zip(ids_whole, ids_split, strict=True))
    return {
        "vocab_size": num_ids(tokenizer),
        "tokens": num_tokens,
        "tokens_per_word": num_tokens / counts["words"],
        "bytes_per_token": counts["bytes"] / num_tokens,
        "characters_per_token": counts["characters"] / num_tokens,
        "unknown_tokens": sum(encoding.ids.count(unk) for encoding in whole),
        "share_of_words_split": num_split / counts["words"],
        "presplit_tokens_per_word": num_presplit_tokens / counts["words"],
        "presplit_share_of_words_split": num_presplit_split / counts["words"],
        "presplit_share_of_words_changed": num_changed / counts["words"],
    }


def _ids_by_word(text: str, starts: list[int], encoding: Any) -> list[list[int]]:
    """Give each token to the word in which its first visible character lies, other spaces to none.

    A space that is a token by itself belongs to the word right after it, as where words are pre-split.
    """
    ids: list[list[int]] = [[] for _ in starts]
    for token_id, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
        end = last + 1 if text[first:last] == " " else last
        visible = next((at for at in range(first, min(end, len(text))) if not text[at].isspace()), None)
        if visible is not None:
            ids[bisect.bisect_right(starts, visible) - 1].append(token_id)
    return ids
