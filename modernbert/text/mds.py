"""MDS shards that hold token ids already -> a folder of shards, as `build` makes it from text.

Steps: read each sample's ids; cut them at [CLS], [SEP] and padding, which leaves the documents (one in a sample, or
several that were packed); check them against the vocabulary; draw the split from the hash of the ids; append.
An import that was cut off goes on: samples in finished shards are read again, not written again.

Price: 7 million tokens a second on one core; one sample in memory, and four bytes for each of its shard's.
Duplicates stay, and the bytes of text are counted from the spelling of the tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from modernbert.errors import ConfigError, DataError
from modernbert.text.blocks import refusing_damage
from modernbert.text.folder import BuildFolder, finished_build, saying_what_to_do
from modernbert.text.mds_format import MdsShard, iter_samples
from modernbert.text.read import Skips, digest_of, list_files
from modernbert.text.tokenizer import (
    load_tokenizer,
    num_ids,
    save_tokenizer,
    special_ids,
    tokenizer_fingerprint,
)

USUAL_COLUMNS = ("input_ids", "tokens")
_BYTES_MAY_BE = ("<i8", "<i4", "<u2")  # widest first: ids of 8 bytes, read as 4, look like ids too, but not vice versa
_SAMPLES_A_CALL = 1000  # of `progress`


def import_mds(
    folder: str | Path,
    tokenizer: Tokenizer | str | Path,
    out: str | Path,
    *,
    column: str | None = None,
    heldout: float = 0.01,
    seed: int = 0,
    min_tokens: int = 1,
    shard_tokens: int = 64 * 2**20,
    model_max_length: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Turn MDS shards of token ids into a folder of shards that training reads.

    Args:
        folder: holds `index.json`, or folders that do.
        tokenizer: the one that made the ids, or its folder or hub name; saved beside the shards.
        out: the folder; may hold an unfinished or finished import of the same inputs, as with `build_shards`.
        column: holds the ids, as an array, a JSON list, or bytes of 64-, 32- or 16-bit integers; "input_ids" or
            "tokens" if not given.
        heldout: share of the documents kept apart, drawn by the hash of each document's ids.
        seed: draws another held-out split.
        min_tokens: shorter documents are left out and counted.
        shard_tokens: a shard is closed once it holds so many.
        model_max_length: noted in tokenizer_config.json, in tokens.
        progress: called now and then with samples read and tokens written.

    Returns:
        The manifest; among its "remarks" is how the first document reads, by which a wrong tokenizer is seen.

    Raises:
        ConfigError: settings out of range, or `out` holds something else.
        DataError: no MDS shards, no such column, damage, ids that are not this tokenizer's, or a full disk.
        UnsupportedError: an encoding or a compression that cannot be read here.
    """
    if not 0 <= heldout < 1:
        raise ConfigError(f"heldout={heldout} is out of range; it may be 0 up to, not including, 1")
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
    files = list_files(folder, on_skip=lambda _reason, _name: None)
    shards = [file.shard for file in files if file.shard is not None]
    column = _column(Path(folder), shards, column)
    target = Path(out)
    settings = {
        "sources": [str(folder)],
        "sources_digest": digest_of(folder),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "column": column,
        "heldout": heldout,
        "min_tokens": min_tokens,
        "shard_tokens": shard_tokens,
        "seed": seed,
    }
    if (manifest := finished_build(target, settings)) is not None:
        return manifest
    with BuildFolder.filling(target, settings, vocab_size=num_ids(tokenizer), shard_tokens=shard_tokens) as build:
        importer = _Import(build, tokenizer, min_tokens)
        for number, (sample, where) in enumerate(_samples(shards, column), start=1):
            importer.add(sample, where)
            if progress is not None and number % _SAMPLES_A_CALL == 0:
                progress(number, build.num_tokens)
        build.close()
        if not build.num_documents["train"]:
            build.forget()
            raise DataError(f"{folder} gives no document to train on, of {min_tokens} tokens or more; give more data, "
                            f"or a smaller --heldout than {heldout}")  # fmt: skip
        save_tokenizer(tokenizer, target, model_max_length=model_max_length)
        skips = Skips()
        skips.counts.update({"too short": count} if (count := build.num_too_short) else {})
        return build.finish(build.describe(skips) | {"remarks": importer.remarks()})


class _Import:
    """Samples -> documents in their split."""

    def __init__(self, build: BuildFolder, tokenizer: Tokenizer, min_tokens: int) -> None:
        special = special_ids(tokenizer)
        self._build, self._tokenizer, self._min_tokens = build, tokenizer, min_tokens
        self._token_bytes = _token_bytes(tokenizer)
        self._is_text = np.ones(len(self._token_bytes), bool)
        self._is_text[[special.cls, special.sep, special.pad]] = False
        self._bytes_are: np.dtype[Any] | None = None
        self._first: list[int] = []
        self._num_samples = self._num_packed = 0

    def add(self, sample: Any, where: str) -> None:
        """Append the documents of one sample."""
        ids = self._ids(sample, where)
        edges = np.flatnonzero(np.diff(self._is_text[ids], prepend=False, append=False))
        pieces = [ids[start:stop] for start, stop in edges.reshape(-1, 2).tolist()]
        self._num_samples += 1
        self._num_packed += len(pieces) > 1
        for piece in pieces:
            self._first = self._first or piece[:40].tolist()
            split = self._build.split_of(hashlib.blake2b(piece.astype("<u4").tobytes(), digest_size=16).digest())
            if not self._build.is_done(split):
                with saying_what_to_do(self._build.folder):
                    num_text_bytes = int(self._token_bytes[piece].sum())
                    self._build.add(split, piece, num_text_bytes=num_text_bytes, min_tokens=self._min_tokens)

    def remarks(self) -> list[str]:
        """What a reader of the manifest should know."""
        remarks = [f"the first document reads: {self._tokenizer.decode(self._first)!r}"]
        if self._num_packed:
            remarks.append(
                f"{self._num_packed:,} of {self._num_samples:,} samples held more than one document, cut at [CLS] and [SEP]"
            )
        return remarks

    def _ids(self, sample: Any, where: str) -> NDArray[Any]:
        if isinstance(sample, bytes):
            self._bytes_are = self._bytes_are or self._guess(sample)
            if self._bytes_are is None or len(sample) % self._bytes_are.itemsize:
                raise DataError(f"{where}: {len(sample):,} bytes that are no 64-, 32- or 16-bit ids of this tokenizer; "
                                "give the tokenizer that made them, or another --column")  # fmt: skip
            ids = np.frombuffer(sample, self._bytes_are)
        else:
            ids = np.asarray(sample)
        if ids.dtype.kind not in "ui" or ids.size != max(ids.shape, default=0):
            raise DataError(f"{where}: {ids.dtype} of shape {list(ids.shape)} is no row of ids; give another --column")
        ids = ids.reshape(-1)
        vocab_size = len(self._token_bytes)
        least, most = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
        if least < 0 or most >= vocab_size:
            wrong = least if least < 0 else most
            raise DataError(f"{where}: the id {wrong} is outside the tokenizer's 0 to {vocab_size - 1:,}; "
                            "give the tokenizer that made these ids")  # fmt: skip
        return ids

    def _guess(self, raw: bytes) -> np.dtype[Any] | None:
        for kind in map(np.dtype, _BYTES_MAY_BE):
            if len(raw) % kind.itemsize == 0:
                ids = np.frombuffer(raw, kind)
                if ids.size and ids.min() >= 0 and ids.max() < len(self._token_bytes):
                    return kind
        return None


def _column(folder: Path, shards: list[MdsShard], column: str | None) -> str:
    """The column of ids, which every shard must have."""
    if not shards:
        raise DataError(f"{folder} holds no MDS shards: no index.json in it or below it; check the path")
    there = list(shards[0].columns)
    wanted = [column] if column else [name for name in USUAL_COLUMNS if name in there]
    for shard in shards:
        if not wanted or wanted[0] not in shard.columns:
            texts = [name for name, column in shard.columns.items() if column.encoding == "str"]
            remedy = "say which holds token ids with --column" + (
                f", or tokenise {texts[0]!r} with `modernbert data build {folder} --text-field {texts[0]}`"
                if texts
                else ""
            )
            missing = f"no column {wanted[0]!r}" if wanted else "no column named input_ids or tokens"
            raise DataError(f"{shard.path}: {missing}; its columns are {', '.join(shard.columns)}: {remedy}")
    return wanted[0]


def _samples(shards: list[MdsShard], column: str) -> Iterator[tuple[Any, str]]:
    for shard in shards:
        samples = refusing_damage(iter_samples(shard, [column]), shard.path, "samples")
        yield from ((sample[column], f"{shard.path}, sample {index}") for index, sample in enumerate(samples))


def _token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of text that each id stands for, 0 for special ones: V entries."""
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    is_byte_level = "ByteLevel" in json.dumps(decoder)  # there, a character of a token is a byte of text
    added = tokenizer.get_added_tokens_decoder()
    sizes = np.zeros(num_ids(tokenizer), np.int64)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index in added:
            sizes[index] = 0 if added[index].special else len(token.encode())
        elif is_byte_level:
            sizes[index] = len(token)
        elif token.startswith("<0x") and token.endswith(">"):
            sizes[index] = 1
        else:
            sizes[index] = len(token.replace("▁", " ").encode())
    return sizes
