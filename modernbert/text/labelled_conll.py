"""A token a line, its tag in the last column, a blank line between sentences (CoNLL) -> a table of words and tags.

    Aspirin NN B-drug          tabs where the first line has one, else runs of spaces
    helps VB O

Lines `-DOCSTART-` end a sentence and are left out, so are comments (`# key = value`, `# id …`) and a header row. CoNLL-U
numbers its words in the first column: the word is in the second, its part of speech in the fourth, all `#` are comments, and
rows that are no word of the sentence (`1-2 don't`, `8.1 _`) are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from modernbert.errors import DataError
from modernbert.text.labelled_table import Table, decoded, numbered_lines

_COMMENT = re.compile(r"#\s+(\w+\s*=|id\s)")
_HEADERS = ({"token", "tokens", "word", "words"}, {"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags"})
_NUMBER, _NO_WORD = re.compile("[0-9]+"), re.compile("[0-9]+[-.][0-9]+")  # of CoNLL-U
_UNIVERSAL = ("2", "4")  # FORM, UPOS
_SPACES = re.compile("[ \t]+")  # no others: a token may be an ideographic space


def read_conll(path: Path, compression: str, *, universal: bool = False) -> Table:
    """Read a CoNLL file; its columns are named "1", "2" and so on.

    Args:
        path: the file.
        compression: ".gz", ".zst" or "".
        universal: it is CoNLL-U.

    Raises:
        DataError: a line with more or fewer columns than the first, or broken UTF-8; CoNLL-U without numbers of words.
    """
    sentences: list[list[list[str]]] = [[]]
    places: list[str] = []
    num_columns, tabs, num_comments, num_left_out = 0, False, 0, 0
    for number, raw in numbered_lines(path, compression):
        line = decoded(raw, f"{path}, line {number}")
        if not line.strip() or line.startswith("-DOCSTART-"):
            sentences += [[]] if sentences[-1] else []
            continue
        if line.startswith("#") if universal else not sentences[-1] and _COMMENT.match(line):
            num_comments += 1
            continue
        tabs = tabs or (not num_columns and "\t" in line)
        fields = line.split("\t") if tabs else _SPACES.split(line.strip(" \t"))
        if not num_columns:
            num_columns = len(fields)
            if not universal and fields[0].lower() in _HEADERS[0] and fields[-1].lower() in _HEADERS[1]:
                continue
        if len(fields) != num_columns:
            separator = "tab" if tabs else "space"
            raise DataError(
                f"{path}, line {number}: {len(fields)} columns, where the first line has {num_columns} (split at each "
                f"{separator}); a token a line, its tag last, and a blank line between sentences"
            )
        if universal and not _is_word(fields, f"{path}, line {number}"):
            num_left_out += 1
            continue
        if not sentences[-1]:
            places.append(f"line {number}")
        sentences[-1].append(fields)
    sentences = [sentence for sentence in sentences if sentence]
    names = [str(number) for number in range(1, num_columns + 1)]
    remarks = ["CoNLL-U: words are in column 2 (form), tags in column 4 (UPOS), if not named"] if universal else []
    if num_comments:
        remarks.append(f"{num_comments:,} comment lines left out")
    if num_left_out:
        remarks.append(f"{num_left_out:,} rows of CoNLL-U left out that are no single words (numbered as 1-2 or 8.1)")
    return Table(
        str(path), names, lambda name: [[fields[int(name) - 1] for fields in sentence] for sentence in sentences],
        places=places, remarks=remarks, word_columns=_UNIVERSAL if universal else (names[0], names[-1]) if names else None,
    )  # fmt: skip


def _is_word(fields: list[str], where: str) -> bool:
    """Whether a row of CoNLL-U is a word of the sentence.

    Raises:
        DataError: it has no number, or no part of speech.
    """
    if _NUMBER.fullmatch(fields[0]) is None and _NO_WORD.fullmatch(fields[0]) is None:
        raise DataError(
            f"{where}: {fields[0]!r}, where .conllu has the number of a word in its sentence; name a file of other columns "
            ".conll"
        )
    if len(fields) < int(_UNIVERSAL[1]):
        raise DataError(f"{where}: {len(fields)} columns, where .conllu has ten; name a file of other columns .conll")
    return _NUMBER.fullmatch(fields[0]) is not None
