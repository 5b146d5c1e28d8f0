"""Files that are whole or not there, whatever interrupts the writing; and folders kept for one process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

# Forks of this process let go of its locks, or a killed one would stay locked until they notice.
_locks: set[IO[str]] = set()
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _locks])


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


def try_lock(path: Path) -> IO[str] | None:
    """Lock a file, made where missing, until the returned one is closed or this process ends.

    Whoever locked it may delete it before letting go.

    Returns:
        None where another process, or another call here, has it.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        lock = open(path, "w")  # noqa: SIM115 - for the caller to close
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            _locks.difference_update([held for held in _locks if held.closed])
            _locks.add(lock)
            return lock
        lock.close()  # deleted between opening and locking
