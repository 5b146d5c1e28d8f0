"""A folder in BEIR's form → its documents, queries and judgments.

corpus.jsonl   {"_id", "title", "text"}        queries.jsonl   {"_id", "text"}      (each also .gz or .zst)
qrels/test.tsv   query-id  corpus-id  score, below a line that says so
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modernbert.errors import DataError
from modernbert.text.labelled_open import open_table

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_QRELS = "qrels"
Judgments = dict[str, dict[str, int]]
"""Query → document → how relevant it is; 0 is judged and not relevant."""


@dataclass(frozen=True, kw_only=True)
class BeirFolder:
    """A retrieval task."""

    name: str
    corpus: dict[str, str]  # id → title and text, with a space between
    queries: dict[str, str]
    judgments: Judgments  # of the split asked for
    num_lost: int = 0  # judgments of documents that are not in the corpus: nobody can find them


def beir_folders(place: str | Path) -> list[Path]:
    """A folder itself, or those in it that are in BEIR's form, by name."""
    place = Path(place)
    candidates = [place, *sorted(place.iterdir())] if place.is_dir() else []
    found = [path for path in candidates if _file(path, "corpus") and (path / _QRELS).is_dir()]
    return found[:1] if found[:1] == [place] else found


def read_beir(folder: str | Path, split: str = "test") -> BeirFolder:
    """Read a task.

    Args:
        folder: it.
        split: whose judgments; queries without one are left out.

    Raises:
        DataError: a file that is missing or broken, or judgments of a query that is not there.
    """
    folder = Path(folder)
    corpus = _texts(folder, "corpus", titles=True)
    queries = _texts(folder, "queries", titles=False)
    judgments = _judgments(folder / _QRELS / f"{split}.tsv")
    if unknown := next((q for q in judgments if q not in queries), None):
        raise DataError(f"{folder}: {split}.tsv judges query {unknown!r}, which is not among its queries")
    num_lost = sum(document not in corpus for judged in judgments.values() for document in judged)
    return BeirFolder(
        num_lost=num_lost,
        name=folder.name,
        corpus=corpus,
        queries={q: queries[q] for q in judgments},
        judgments=judgments,
    )


def splits_of(folder: str | Path) -> list[str]:
    """The splits that have judgments."""
    return sorted(path.stem for path in (Path(folder) / _QRELS).glob("*.tsv"))


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for ending in _ENDINGS if (path := folder / f"{stem}{ending}").is_file()), None)


def _texts(folder: Path, stem: str, *, titles: bool) -> dict[str, str]:
    path = _file(folder, stem)
    if path is None:
        raise DataError(
            f"{folder} has no {stem}.jsonl (nor .gz, .zst); a folder in BEIR's form has corpus, queries and qrels"
        )
    table = open_table(path)
    if lacking := {"_id", "text"} - set(table.names):
        raise DataError(f"{path} has no {sorted(lacking)[0]!r}; each line has an _id and a text")
    ids, texts = table.column("_id"), table.column("text")
    heads = table.column("title") if titles and "title" in table.names else [""] * len(texts)
    found: dict[str, str] = {}
    for row, (key, head, text) in enumerate(zip(ids, heads, texts, strict=True)):
        if key is None or not isinstance(text, str) or not isinstance(head, str | None):
            raise DataError(f"{table.where(row)}: an _id and a text are needed, and a title is a text")
        if str(key) in found:
            raise DataError(f"{table.where(row)}: the _id {key!r} is that of a line before it; give each its own")
        found[str(key)] = f"{head} {text}".strip() if head else text
    return found


def _judgments(path: Path) -> Judgments:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        known = ", ".join(splits_of(path.parent.parent)) or "none"
        raise DataError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); splits that are there: {known}"
        ) from error
    judgments: Judgments = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if number == 1 and fields[-1].strip().lower() == "score":
            continue
        try:
            query, document, score = fields
            judged = float(score)
            if judged != int(judged):
                raise ValueError(score)
            judgments.setdefault(query, {})[document] = int(judged)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path}, line {number}: no judgment; write query-id, corpus-id and a whole score with tabs"
            ) from error
    if not judgments:
        raise DataError(f"{path} has no judgments")
    return judgments
