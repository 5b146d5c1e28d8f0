"""Text files -> a folder of shards (see `shards` for what lies in it).

Steps: read, drop duplicates, draw the split from the document's hash, tokenise in batches, append to the
open shard of that split; a full shard is synced, renamed into place and noted in `build.json`;
`manifest.json` comes last.

A build that was cut off goes on where it stopped: the sources are read and hashed again (cheap), documents
that lie in finished shards are not tokenised again, and the result is the same, byte for byte. This works
because the contents of a shard depend on the order of its split's documents alone.

Price: 6 MB of text a second on two cores (1.4 million tokens), 90 MB a second through what is finished already.
Memory: 100 bytes a document for the duplicates, and 100 times the longest document while it is tokenised, so a file
of gigabytes should be read by "line" or "paragraph".
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from modernbert.batch import Document
from modernbert.disk import write_whole
from modernbert.errors import ConfigError, DataError
from modernbert.text.clean import document_hash, drop_duplicates_and_short, is_held_out
from modernbert.text.read import Cut, Paths, Skips, iter_documents, list_files
from modernbert.text.shards import (
    FORMAT_VERSION,
    MANIFEST,
    PREFIXES,
    read_manifest,
    token_dtype,
)
from modernbert.text.tokenizer import for_plain_text, num_ids, save_tokenizer, tokenizer_fingerprint
from modernbert.text.writer import SplitWriter

_STATE = "build.json"
_BATCH_CHARS = 2**20
_log = logging.getLogger(__name__)


def build_shards(
    sources: Paths,
    *,
    tokenizer: Tokenizer,
    out: str | Path,
    heldout: float = 0.01,
    min_tokens: int = 8,
    shard_tokens: int = 64 * 2**20,
    text_field: str = "text",
    documents: Cut = "file",
    exclude: Iterable[str] = (),
    seed: int = 0,
    model_max_length: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Tokenise text files into a folder of shards; a build that was cut off goes on.

    Args:
        sources: files and folders, as `iter_documents` takes them.
        tokenizer: saved beside the shards. Special tokens spelled out in a text ("[MASK]") stay plain text.
        out: the folder; may hold an unfinished or finished build of the same inputs. A finished one is returned
            as it is.
        heldout: share of the documents kept apart, drawn by each document's hash: a text is in the same split
            whatever else is in the corpus.
        min_tokens: shorter documents are left out and counted.
        shard_tokens: a shard is closed once it holds so many; a document is never cut.
        text_field: the field of a JSON line that holds its text.
        documents: what one document is in a plain file: "file", "line" or "paragraph".
        exclude: shell patterns of files to pass over.
        seed: draws another held-out split.
        model_max_length: noted in tokenizer_config.json, in tokens; nothing is cut to it here.
        progress: called after each batch with documents read and tokens written.

    Returns:
        The manifest.

    Raises:
        ConfigError: settings out of range, or `out` holds another build.
        DataError: sources that cannot be read, no document left over, or the disk is full.
    """
    _check_settings(heldout, min_tokens, shard_tokens, seed)
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    exclude = tuple(exclude)
    folder = Path(out)
    settings = {
        "sources": [str(path) for path in sources],
        "sources_digest": _digest_of_files(sources, exclude),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "heldout": heldout,
        "min_tokens": min_tokens,
        "shard_tokens": shard_tokens,
        "text_field": text_field,
        "documents": documents,
        "exclude": list(exclude),
        "seed": seed,
    }
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _check_same_build(folder, manifest["settings"], settings)
        _log.info("%s holds this very build already; nothing to do", folder)
        return manifest
    with _saying_what_to_do(folder):
        build = _Build(folder, settings, vocab_size=num_ids(tokenizer), shard_tokens=shard_tokens)
    plain = for_plain_text(tokenizer)
    skips = Skips()
    found = iter_documents(sources, text_field=text_field, documents=documents, on_skip=skips.add, exclude=exclude)
    try:
        kept = drop_duplicates_and_short(found, skips=skips)
        for batch in _batches(build.not_done(kept)):
            with _saying_what_to_do(folder):
                build.add(batch, plain, min_tokens)
            if progress is not None:
                progress(build.num_read, build.num_tokens)
        with _saying_what_to_do(folder):
            build.close()
    except DataError:
        if not any(writer.finished for writer in build.writers.values()):
            build.forget()  # there is nothing to go on from, and the sources will change
        raise
    finally:
        build.discard_open_shards()
    skips.counts.update({"too short": count} if (count := build.num_too_short) else {})
    if not build.num_documents["train"]:
        build.forget()
        raise DataError(_nothing_left(build, skips))
    save_tokenizer(tokenizer, folder, model_max_length=model_max_length)
    with _saying_what_to_do(folder):
        return build.finish(skips)


class _Build:
    """A folder on its way to being a finished build, and the writer of each split."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, vocab_size: int, shard_tokens: int) -> None:
        self.folder = folder
        self.settings = settings
        self.vocab_size = vocab_size
        self.num_read = 0
        self._state_path = folder / _STATE
        finished: dict[str, list[dict[str, Any]]] = {split: [] for split in PREFIXES}
        folder.mkdir(parents=True, exist_ok=True)
        if self._state_path.exists():
            state = json.loads(self._state_path.read_bytes())
            _check_same_build(folder, state["settings"], settings)
            finished = state["shards"]
        self.writers = {
            split: SplitWriter(
                folder,
                prefix,
                dtype=token_dtype(vocab_size),
                shard_tokens=shard_tokens,
                finished=finished[split],
            )
            for split, prefix in PREFIXES.items()
        }
        self._write_state()

    @property
    def num_tokens(self) -> int:
        return sum(writer.num_tokens for writer in self.writers.values())

    @property
    def num_too_short(self) -> int:
        return sum(writer.num_too_short for writer in self.writers.values())

    @property
    def num_documents(self) -> dict[str, int]:
        return {split: writer.num_documents for split, writer in self.writers.items()}

    def not_done(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """Pair each document with its split, those in finished shards left out."""
        done = {split: writer.num_documents + writer.num_too_short for split, writer in self.writers.items()}
        for document in documents:
            self.num_read += 1
            digest = document_hash(document.text)
            held_out = is_held_out(digest, fraction=self.settings["heldout"], seed=self.settings["seed"])
            split = "heldout" if held_out else "train"
            if done[split]:
                done[split] -= 1
            else:
                yield split, document

    def add(self, batch: list[tuple[str, Document]], tokenizer: Tokenizer, min_tokens: int) -> None:
        texts = [document.text for _, document in batch]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (split, document), encoding in zip(batch, encodings, strict=True):
            writer = self.writers[split]
            if len(encoding.ids) < min_tokens:
                writer.num_too_short += 1
            elif writer.add(encoding.ids, num_text_bytes=len(document.text.encode())):
                self._write_state()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close_shard()
        self._write_state()

    def discard_open_shards(self) -> None:
        for writer in self.writers.values():
            writer.discard()

    def forget(self) -> None:
        """Leave nothing behind that looks like a build."""
        for shard in itertools.chain.from_iterable(writer.finished for writer in self.writers.values()):
            for ending in ("bin", "idx"):
                (self.folder / f"{shard['name']}.{ending}").unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder holds something else, or is in use
            self.folder.rmdir()

    def finish(self, skips: Skips) -> dict[str, Any]:
        manifest = {
            "format": "modernbert-shards",
            "version": FORMAT_VERSION,
            "dtype": token_dtype(self.vocab_size).name,
            "vocab_size": self.vocab_size,
            "tokenizer": self.settings["tokenizer"],
            "splits": {split: writer.describe() for split, writer in self.writers.items()},
            "skipped": skips.as_dict(),
            "settings": self.settings,
        }
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        self._state_path.unlink()
        return manifest

    def _write_state(self) -> None:
        shards = {split: writer.finished for split, writer in self.writers.items()}
        state = {"settings": self.settings, "shards": shards}
        write_whole(self._state_path, json.dumps(state, ensure_ascii=False))


def _check_settings(heldout: float, min_tokens: int, shard_tokens: int, seed: int) -> None:
    if not 0 <= heldout < 1:
        raise ConfigError(f"heldout={heldout} is out of range; it may be 0 up to, not including, 1")
    for name, value, least in (
        ("min_tokens", min_tokens, 1),
        ("shard_tokens", shard_tokens, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name}={value} is out of range; the least is {least}")


def _digest_of_files(sources: Iterable[str | Path], exclude: Iterable[str]) -> str:
    """SHA-256 over each file's path, size and time of change: notices another corpus without reading it."""
    digest = hashlib.sha256()
    for file in list_files(sources, on_skip=lambda _reason, _name: None, exclude=exclude):
        status = file.path.stat()
        line = f"{file.path}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _check_same_build(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    names = {"sources_digest": "the source files", "tokenizer": "the tokenizer"}
    different = [
        names.get(key, f"{key} ({there.get(key)!r} there, {value!r} here)")
        for key, value in here.items()
        if there.get(key) != value
    ]
    if different:
        raise ConfigError(
            f"{folder} holds a build of other inputs: {', '.join(different)} differ; "
            "choose another --out, or delete that folder"
        )


def _batches(documents: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    num_chars = 0
    for entry in documents:
        batch.append(entry)
        num_chars += len(entry[1].text)
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


@contextmanager
def _saying_what_to_do(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror or error}); make room or take another --out, and "
            "run the same command again: finished shards are kept"
        ) from error


def _nothing_left(build: _Build, skips: Skips) -> str:
    if build.num_documents["heldout"]:
        return (
            f"all {build.num_documents['heldout']} documents fell into the held-out split and none is left to "
            f"train on; give more text, or a smaller --heldout than {build.settings['heldout']}"
        )
    sources = ", ".join(build.settings["sources"])
    return f"no documents in {sources}; left out: {skips if skips.counts else 'nothing, for nothing was there'}"
