"""Files that are whole or not there, whatever interrupts the writing."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file: a reader finds the old contents or the new, never half, also behind a power cut.

    Raises:
        OSError: as from writing; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        sync(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have a file's or folder's contents on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
