"""Documents -> documents worth training on: no exact duplicates, nothing empty.

Price: a table of 16-byte digests, 25 bytes a document, of which a cache of fixed size lies in memory and the rest on
disk; 80,000 documents a second. Near-duplicates are the business of `near`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from modernbert.batch import Document
from modernbert.text.read import Skips

CACHE_BYTES = 64 * 2**20


def document_hash(text: str) -> bytes:
    """16 bytes that stand for a text, whitespace around it aside; the same on every machine."""
    return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()


def is_held_out(digest: bytes, *, fraction: float, seed: int = 0) -> bool:
    """Whether the document with this digest belongs to the held-out split, whatever else is in the corpus."""
    drawn = hashlib.blake2b(digest, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(drawn, "little") < fraction * 2**64


def open_scratch(folder: Path | None, cache_bytes: int) -> sqlite3.Connection:
    """Open a database that nobody will read again: nothing is synced, and it vanishes with the process.

    Args:
        folder: where its file lies, nameless, so that a kill leaves nothing behind; the place for temporary files
            if not given.
        cache_bytes: memory that it may hold; what is more goes to disk.
    """
    path = folder / ".scratch.db" if folder else None
    if path:
        path.unlink(missing_ok=True)
    database = sqlite3.connect(path or "", isolation_level=None)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute(f"PRAGMA cache_size = -{max(cache_bytes // 1024, 64)}")  # negative: kibibytes
    database.execute("BEGIN")  # never ended: pages are written when the cache is full, and only then
    if path:
        path.unlink(missing_ok=True)
    return database


class Seen:
    """The digests met so far, in bounded memory.

    Args:
        folder: where the table goes once it outgrows the cache; the place for temporary files if not given.
        cache_bytes: memory for it.
    """

    def __init__(self, folder: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self._database = open_scratch(folder, cache_bytes)
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def is_new(self, digest: bytes) -> bool:
        """Whether this digest was not met before; it is now."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1


def drop_duplicates_and_short(
    documents: Iterable[Document], *, min_chars: int = 1, skips: Skips, seen: Seen | None = None
) -> Iterator[Document]:
    """Pass each distinct text on once, the first time it is met.

    Args:
        documents: any stream of documents.
        min_chars: fewest characters, whitespace around the text aside.
        skips: counts what is left out: "empty", "too short" and "exact duplicate".
        seen: the digests met before; an empty table if not given.
    """
    seen = seen or Seen()
    for document in documents:
        num_chars = len(document.text.strip())
        if num_chars == 0:
            reason = "empty"
        elif num_chars < min_chars:
            reason = "too short"
        elif not seen.is_new(document_hash(document.text)):
            reason = "exact duplicate"
        else:
            yield document
            continue
        skips.add(reason, f"{document.source}#{document.position}")
