"""A token a line, its tag in the last column, a blank line between sentences (CoNLL) -> a table of words and tags.

    Aspirin NN B-drug          tabs where the first line has one, else runs of spaces
    helps VB O

Lines `-DOCSTART-` end a sentence and are left out, so are comments (`# key = value`, `# id …`) and a header row.
"""

from __future__ import annotations

import re
from pathlib import Path

from modernbert.errors import DataError
from modernbert.text.labelled_table import Table, decoded, numbered_lines

_COMMENT = re.compile(r"#\s+(\w+\s*=|id\s)")
_HEADERS = ({"token", "tokens", "word", "words"}, {"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags"})
_SPACES = re.compile("[ \t]+")  # no others: a token may be an ideographic space


def read_conll(path: Path, compression: str) -> Table:
    """Read a CoNLL file; its columns are named "1", "2" and so on.

    Raises:
        DataError: a line with more or fewer columns than the first, or broken UTF-8.
    """
    sentences: list[list[list[str]]] = [[]]
    places: list[str] = []
    num_columns, tabs, num_comments = 0, False, 0
    for number, raw in numbered_lines(path, compression):
        line = decoded(raw, f"{path}, line {number}")
        if not line.strip() or line.startswith("-DOCSTART-"):
            sentences += [[]] if sentences[-1] else []
            continue
        if not sentences[-1] and _COMMENT.match(line):
            num_comments += 1
            continue
        tabs = tabs or (not num_columns and "\t" in line)
        fields = line.split("\t") if tabs else _SPACES.split(line.strip(" \t"))
        if not num_columns:
            num_columns = len(fields)
            if fields[0].lower() in _HEADERS[0] and fields[-1].lower() in _HEADERS[1]:
                continue
        if len(fields) != num_columns:
            separator = "tab" if tabs else "space"
            raise DataError(
                f"{path}, line {number}: {len(fields)} columns, where the first line has {num_columns} (split at each "
                f"{separator}); a token a line, its tag last, and a blank line between sentences"
            )
        if not sentences[-1]:
            places.append(f"line {number}")
        sentences[-1].append(fields)
    sentences = [sentence for sentence in sentences if sentence]
    names = [str(number) for number in range(1, num_columns + 1)]
    return Table(
        str(path), names, lambda name: [[fields[int(name) - 1] for fields in sentence] for sentence in sentences],
        places=places, remarks=[f"{num_comments:,} comment lines left out"] if num_comments else (), numbered=True,
    )  # fmt: skip
