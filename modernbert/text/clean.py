"""Documents -> documents worth training on: no exact duplicates, nothing empty.

Price: about 100 bytes of memory for each document kept (a 16-byte digest, in a Python set): 1 GB for
ten million documents. Near-duplicates stay; they need another tool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from modernbert.batch import Document
from modernbert.text.read import Skips


def document_hash(text: str) -> bytes:
    """16 bytes that stand for a text, whitespace around it aside; the same on every machine."""
    return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()


def is_held_out(digest: bytes, *, fraction: float, seed: int = 0) -> bool:
    """Whether the document with this digest belongs to the held-out split, whatever else is in the corpus."""
    drawn = hashlib.blake2b(digest, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(drawn, "little") < fraction * 2**64


def drop_duplicates_and_short(documents: Iterable[Document], *, min_chars: int = 1, skips: Skips) -> Iterator[Document]:
    """Pass each distinct text on once, the first time it is met.

    Args:
        documents: any stream of documents.
        min_chars: fewest characters, whitespace around the text aside.
        skips: counts what is left out: "empty", "too short" and "exact duplicate".
    """
    seen: set[bytes] = set()
    for document in documents:
        num_chars = len(document.text.strip())
        digest = document_hash(document.text)
        if num_chars == 0:
            reason = "empty"
        elif num_chars < min_chars:
            reason = "too short"
        elif digest in seen:
            reason = "exact duplicate"
        else:
            seen.add(digest)
            yield document
            continue
        skips.add(reason, f"{document.source}#{document.position}")
