"""Checkpoints at an address: which are whole, and their models here.

    ADDRESS/stable-00001000/…                 the files of a checkpoint, and
    ADDRESS/stable-00001000/manifest.json     their sizes and hashes: put last, removed first

A checkpoint counts when its manifest is there, and all that it lists. Price: a listing, and a small read a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from modernbert.errors import CheckpointError
from modernbert.remote import Entry, Remote, cache_folder

CHECKPOINT_MANIFEST = "manifest.json"
_NAME = re.compile(r"[a-z][a-z0-9_]*-\d{8,}")  # a phase and its step
_STATE = "state/"  # what a run needs beside the model, twice its size


def fetch_model(address: str, *, remark: Callable[[str], None] | None = None) -> Path:
    """The folder here of a model at an address: a checkpoint, or the newest whole one of a run. Without `state/`.

    Args:
        address: of a checkpoint or of a run that was saved there.
        remark: is told when the service does not answer and is tried again.

    Raises:
        ConfigError: no package for such addresses.
        CheckpointError: no whole checkpoint there, no answer, or no room here.
    """
    remote = Remote(address, error=CheckpointError, remark=remark)
    raw = remote.read_bytes(CHECKPOINT_MANIFEST)
    if raw is None:
        newest = next(reversed(whole_checkpoints(remote, remote.files())), None)
        if newest is None:
            raise CheckpointError(
                f"{address} holds no whole checkpoint (no {CHECKPOINT_MANIFEST}); give the address of a run, or copy the "
                "folder here and give that"
            )
        remote = remote.at(newest)
        raw = remote.read_bytes(CHECKPOINT_MANIFEST) or b""
    entries = [entry for entry in _parse(raw, remote.address) if not entry.name.startswith(_STATE)]
    folder = cache_folder(remote.address, "models", hashlib.sha256(raw).hexdigest())
    remote.mirror(folder, entries)
    return folder


def checkpoint_names(names: Iterable[str]) -> list[str]:
    """Those that a run gives to checkpoints, by their steps."""
    return sorted({name for name in names if _NAME.fullmatch(name)}, key=step_of)


def step_of(name: str) -> int:
    """`stable-00001000` → 1000."""
    return int(name.rpartition("-")[2])


def whole_checkpoints(remote: Remote, files: dict[str, int]) -> dict[str, list[Entry]]:
    """What each whole checkpoint of a run holds, oldest first.

    Args:
        remote: the run's folder.
        files: what it lists.

    Raises:
        CheckpointError: a manifest that is damaged, which no cut leaves: an object is replaced whole.
    """
    found = {}
    for name in checkpoint_names(file.partition("/")[0] for file in files if "/" in file):
        manifest = f"{name}/{CHECKPOINT_MANIFEST}"
        raw = remote.read_bytes(manifest) if manifest in files else None
        if raw is None:
            continue
        entries = _parse(raw, f"{remote.address}/{name}")
        if all(files.get(f"{name}/{entry.name}") == entry.bytes for entry in entries):
            found[name] = entries
    return found


def _parse(raw: bytes, address: str) -> list[Entry]:
    try:
        entries = [Entry(**entry) for entry in json.loads(raw)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{address}/{CHECKPOINT_MANIFEST} is no checkpoint's ({type(error).__name__}: {error}); give a run or a "
            "checkpoint of it, or delete that folder there to go on from the checkpoint before"
        ) from error
    return entries
