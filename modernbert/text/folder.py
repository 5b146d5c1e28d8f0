"""Documents of token ids -> a folder of shards: two splits, what is done so far, and the manifest.

`build.json` notes each shard that is whole on disk, so that whoever fills the folder can go on; `manifest.json` comes
last and makes a data set of it. Price: a few kilobytes written for each shard that is closed.
"""

from __future__ import annotations

import itertools
import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from modernbert.disk import try_lock, write_whole
from modernbert.errors import ConfigError, DataError, ModernBertError
from modernbert.text.clean import is_held_out
from modernbert.text.read import Skips
from modernbert.text.shards import FORMAT_VERSION, MANIFEST, PREFIXES, Split, read_manifest, token_dtype
from modernbert.text.writer import SplitWriter

_STATE, _LOCK = "build.json", ".lock"
_log = logging.getLogger(__name__)


class BuildFolder:
    """A folder on its way to being a finished build, and the writer of each split.

    Args:
        folder: made where missing; may hold the unfinished build of the same settings, which goes on.
        settings: what the contents depend on, as plain data; "tokenizer" (its fingerprint), "heldout" and "seed"
            among them.
        vocab_size: ids are below it.
        shard_tokens: a shard is closed once it holds so many.
        scores: whether each document comes with a score.

    Raises:
        ConfigError: the folder holds a build of other settings.
        DataError: what it notes of itself is damaged.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, vocab_size: int, shard_tokens: int, scores: bool = False
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.vocab_size = vocab_size
        self.keeps_scores = scores
        self._state_path = folder / _STATE
        finished: dict[str, list[dict[str, Any]]] = {split: [] for split in PREFIXES}
        if self._state_path.exists():
            there, finished = _read_state(self._state_path)
            check_same_build(folder, there, settings)
        self.writers = {
            split: SplitWriter(
                folder,
                prefix,
                dtype=token_dtype(vocab_size),
                shard_tokens=shard_tokens,
                finished=finished[split],
                scores=scores,
            )
            for split, prefix in PREFIXES.items()
        }
        self._num_done = {split: writer.num_documents + writer.num_too_short for split, writer in self.writers.items()}
        self._write_state()

    @classmethod
    @contextmanager
    def filling(cls, folder: Path, settings: dict[str, Any], **options: Any) -> Iterator[BuildFolder]:
        """Open a folder, made where missing, and keep other processes out of it while it is filled.

        However that ends, whole shards are left or nothing: after a refusal the sources will change, so a build
        without a shard is forgotten, and an empty folder goes.

        Args:
            folder: as the class takes it.
            settings: likewise.
            **options: likewise.

        Raises:
            DataError: another process fills it, or it cannot be written.
        """
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file, not a folder; take another --out")
        with saying_what_to_do(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = try_lock(folder / _LOCK)
        if lock is None:
            raise DataError(f"{folder} is being written by another process; wait for it or take another --out")
        with lock:
            try:
                with saying_what_to_do(folder):
                    build = cls(folder, settings, **options)
                with build._leaving_whole_shards():
                    yield build
            finally:
                (folder / _LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # the folder holds something
                    folder.rmdir()

    @contextmanager
    def _leaving_whole_shards(self) -> Iterator[None]:
        try:
            yield
        except ModernBertError:
            if not self.has_shards:
                self.forget()
            raise
        except sqlite3.Error as error:
            raise cannot_write(self.folder, error) from error
        finally:
            self.discard_open_shards()

    @property
    def num_tokens(self) -> int:
        """Tokens of both splits."""
        return sum(writer.num_tokens for writer in self.writers.values())

    @property
    def num_too_short(self) -> int:
        """Documents of fewer than `min_tokens`."""
        return sum(writer.num_too_short for writer in self.writers.values())

    @property
    def num_documents(self) -> dict[str, int]:
        """Documents kept, by split."""
        return {split: writer.num_documents for split, writer in self.writers.items()}

    @property
    def has_shards(self) -> bool:
        """Whether there is anything to go on from."""
        return any(writer.finished for writer in self.writers.values())

    @property
    def is_catching_up(self) -> bool:
        """Whether documents still come that lie in finished shards of an earlier call."""
        return any(self._num_done.values())

    def split_of(self, digest: bytes) -> Split:
        """The split of the document with this digest."""
        held_out = is_held_out(digest, fraction=self.settings["heldout"], seed=self.settings["seed"])
        return "heldout" if held_out else "train"

    def is_done(self, split: Split) -> bool:
        """Whether the next document of this split lies in a finished shard already. Call once for each document."""
        if not self._num_done[split]:
            return False
        self._num_done[split] -= 1
        return True

    def add(
        self,
        split: Split,
        ids: Sequence[int] | NDArray[Any],
        *,
        num_text_bytes: int,
        min_tokens: int,
        score: float | None = None,
    ) -> None:
        """Append a document to its split, or count it as too short."""
        writer = self.writers[split]
        if len(ids) < min_tokens:
            writer.num_too_short += 1
        elif writer.add(ids, num_text_bytes=num_text_bytes, score=score):
            self._write_state()

    def close(self) -> None:
        """Close the open shards."""
        with saying_what_to_do(self.folder):
            for writer in self.writers.values():
                writer.close_shard()
            self._write_state()

    def discard_open_shards(self) -> None:
        """Leave finished shards only."""
        for writer in self.writers.values():
            writer.discard()

    def forget(self) -> None:
        """Leave nothing behind that looks like a build."""
        for shard in itertools.chain.from_iterable(writer.finished for writer in self.writers.values()):
            for ending in ("bin", "idx", "score"):
                (self.folder / f"{shard['name']}.{ending}").unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    def describe(self, skips: Skips) -> dict[str, Any]:
        """The manifest of the closed shards."""
        return {
            "format": "modernbert-shards",
            "version": FORMAT_VERSION,
            "dtype": token_dtype(self.vocab_size).name,
            "vocab_size": self.vocab_size,
            "tokenizer": self.settings["tokenizer"],
            "scores": self.keeps_scores,
            "splits": {split: writer.describe() for split, writer in self.writers.items()},
            "skipped": skips.as_dict(),
            "settings": self.settings,
        }

    def finish(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, which makes a data set of the folder. Returns it."""
        with saying_what_to_do(self.folder):
            write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            self._state_path.unlink()
        return manifest

    def _write_state(self) -> None:
        shards = {split: writer.finished for split, writer in self.writers.items()}
        state = {"settings": self.settings, "shards": shards}
        write_whole(self._state_path, json.dumps(state, ensure_ascii=False))


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The settings of an unfinished build and its finished shards."""
    try:
        state = json.loads(path.read_bytes())
        return state["settings"], {split: state["shards"][split] for split in PREFIXES}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete the folder, build again"
        ) from error


def finished_build(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that holds this very build; None where it holds none that is finished.

    Raises:
        ConfigError: it holds another.
        DataError: its manifest is damaged.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    check_same_build(folder, manifest["settings"], settings)
    _log.info("%s holds this very build already; nothing to do", folder)
    return manifest


def check_same_build(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to mix two builds.

    Raises:
        ConfigError: the settings differ; the message names them.
    """
    names = {"sources_digest": "the source files", "tokenizer": "the tokenizer"}
    different = [
        names.get(key, f"{key} ({there.get(key)!r} there, {here.get(key)!r} here)")
        for key in [*here, *(key for key in there if key not in here)]
        if there.get(key) != here.get(key)
    ]
    if different:
        raise ConfigError(
            f"{folder} holds a build of other inputs: {', '.join(different)} differ; "
            "choose another --out, or delete that folder"
        )


@contextmanager
def saying_what_to_do(folder: Path) -> Iterator[None]:
    """Turn what a full or foreign disk says into one line with a remedy."""
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(folder: Path, error: OSError | sqlite3.Error) -> DataError:
    """What to say of a full or foreign disk."""
    reason = getattr(error, "strerror", None) or error
    return DataError(
        f"{folder} cannot be written ({reason}); make room or take another --out, and "
        "run the same command again: finished shards are kept"
    )
