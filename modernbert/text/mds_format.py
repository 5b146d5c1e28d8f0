"""A folder of MDS shards (MosaicML Streaming, version 2) -> samples and documents, without its package.

On disk: `index.json` lists the shards with their columns, sizes and hashes. A shard is, little-endian: uint32
number of samples n; n + 1 uint32 offsets into the file; the columns once more as JSON; the samples. A sample is a
uint32 size for each column of no fixed size, then the values of all columns end to end. The shard as a whole may be
compressed. An index may list shards that lie in folders below it, and a folder below may have an index of its own.

Price: each shard is read once from front to back, compressed or not: 70 MB/s, with one sample and four bytes for
each of the shard's samples in memory. Sizes and counts are checked, and the first hash that Python itself can take.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert.batch import Document
from modernbert.errors import DataError, UnsupportedError
from modernbert.text.blocks import read_blocks
from modernbert.text.records import Fields, OnSkip, documents_of

INDEX = "index.json"
SUFFIX = ".mds"
_COMPRESSIONS = {"zstd": ".zst", "gz": ".gz", "bz2": ".bz2"}  # theirs -> what `read_blocks` says
_SCALARS = {name: np.dtype(name).newbyteorder("<") for name in (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
)}  # fmt: skip
# The first byte of an array whose type its column does not fix: bits, plus 1 for signed and 2 for floating.
_ARRAY_TYPES = {8 * kind.itemsize + "uif".index(kind.kind): kind for kind in _SCALARS.values()}


@dataclass(frozen=True, slots=True)
class Column:
    """A column's encoding, and its size in bytes where all values have the same."""

    encoding: str
    size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MdsShard:
    """What the index says of a shard."""

    path: Path
    compression: str
    num_samples: int
    num_bytes: int  # uncompressed
    hashes: tuple[tuple[str, str], ...]  # of the uncompressed bytes
    columns: dict[str, Column]


def shards_in(folder: Path) -> list[MdsShard] | None:
    """The shards that a folder's index lists, or None where the folder has no MDS index.

    Raises:
        DataError: the index is damaged or of another version, or a shard is missing or cut short.
        UnsupportedError: a compression that cannot be undone here.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        if not any(folder.glob(f"*{SUFFIX}*")):
            return None  # an index.json of something else
        raise DataError(f"{path} cannot be read ({error}); copy it again") from error
    if not (isinstance(index, dict) and isinstance(index.get("shards"), list)):
        return None
    if index.get("version") != 2:
        raise DataError(f"{path} is of MDS version {index.get('version')}, and this package reads 2; write it again")
    try:
        return [_shard(folder, entry) for entry in index["shards"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again") from error


def _shard(folder: Path, entry: dict[str, Any]) -> MdsShard:
    if entry["format"] != "mds":
        raise UnsupportedError(f"{folder / INDEX} lists shards of format {entry['format']!r}, not mds; convert them")
    raw, packed = entry["raw_data"], entry.get("zip_data")
    name, compression, size = raw["basename"], "", raw["bytes"]
    if packed and not (folder / name).is_file():
        kind = entry["compression"].partition(":")[0]
        if kind not in _COMPRESSIONS:
            raise UnsupportedError(
                f"{folder / packed['basename']} is compressed with {kind}, and this package undoes "
                f"{', '.join(_COMPRESSIONS)}; write the shards with one of these, or without"
            )
        name, compression, size = packed["basename"], _COMPRESSIONS[kind], packed["bytes"]
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"the shard {name!r} lies outside the folder")
    path = folder / name
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        state = "is missing" if found is None else f"has {found:,} bytes"
        raise DataError(f"{path} {state}, and {INDEX} says {size:,} bytes; copy it again")
    columns = {
        name: Column(encoding, size)
        for name, encoding, size in zip(
            entry["column_names"], entry["column_encodings"], entry["column_sizes"], strict=True
        )
    }
    return MdsShard(
        path=path,
        compression=compression,
        num_samples=int(entry["samples"]),
        num_bytes=int(raw["bytes"]),
        hashes=tuple(sorted(raw["hashes"].items())),
        columns=columns,
    )


def read_mds(shard: MdsShard, fields: Fields, skip: OnSkip) -> Iterator[Document]:
    """Read the documents of a shard that has a column of text.

    Args:
        shard: as `shards_in` gives it.
        fields: the columns wanted.
        skip: as `documents_of` takes it.

    Raises:
        DataError: a column is missing or is no text.
        EOFError: the shard is damaged.
        UnsupportedError: an encoding that cannot be read here.
    """
    texts = [name for name, column in shard.columns.items() if column.encoding == "str"]
    fields.check_columns(shard.columns, str(shard.path), texts=texts)
    samples = enumerate(iter_samples(shard, fields.among(shard.columns)))
    rows = (
        (position, f"{shard.path}, sample {position}", dict.fromkeys(shard.columns) | values)
        for position, values in samples
    )
    yield from documents_of(rows, fields, str(shard.path), skip)


def iter_samples(shard: MdsShard, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Decode the named columns of every sample, in order; `str` comes as bytes of UTF-8.

    Raises:
        EOFError: the shard is damaged.
        OSError: as from reading.
        UnsupportedError: an encoding that cannot be read here.
    """
    decoders = {name: decoder(shard.columns[name].encoding, f"{shard.path}, column {name!r}") for name in names}
    algorithm, expected = next((pair for pair in shard.hashes if pair[0] in hashlib.algorithms_available), ("", ""))
    stream = _Stream(read_blocks(shard.path, shard.compression), algorithm)
    (count,) = np.frombuffer(stream.take(4), "<u4").tolist()
    if count != shard.num_samples:
        raise EOFError
    offsets = np.frombuffer(stream.take(4 * (count + 1)), "<u4").astype(np.int64)
    head_bytes = 4 * (count + 2)
    if offsets[0] < head_bytes or offsets[-1] != shard.num_bytes or (np.diff(offsets) < 0).any():
        raise EOFError
    stream.take(int(offsets[0]) - head_bytes)
    for size in np.diff(offsets).tolist():
        try:
            values = _values(stream.take(size), shard.columns)
            sample = {name: decoders[name](value) for name, value in values if name in decoders}
        except (ValueError, KeyError, IndexError, StopIteration) as error:
            raise EOFError from error
        yield sample
    if not stream.is_over() or (algorithm and stream.digest() != expected):
        raise EOFError


def _values(raw: bytes, columns: dict[str, Column]) -> list[tuple[str, bytes]]:
    found = []
    at = 4 * sum(not column.size for column in columns.values())
    sizes = iter(np.frombuffer(raw[:at], "<u4").tolist())
    for name, column in columns.items():
        size = column.size or next(sizes)
        if at + size > len(raw):
            raise ValueError
        found.append((name, raw[at : at + size]))
        at += size
    if at != len(raw):
        raise ValueError
    return found


class _Stream:
    """Blocks of bytes, taken in pieces of any size."""

    def __init__(self, blocks: Iterator[bytes], algorithm: str) -> None:
        self._blocks, self._block, self._at = blocks, b"", 0
        self._hash = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None

    def take(self, num_bytes: int) -> bytes:
        """The next bytes. Raises EOFError where there are fewer."""
        parts = []
        while num_bytes > len(self._block) - self._at:
            parts.append(self._block[self._at :])
            num_bytes -= len(parts[-1])
            if not self._next():
                raise EOFError
        self._at += num_bytes
        piece = self._block[self._at - num_bytes : self._at]
        return b"".join([*parts, piece]) if parts else piece

    def is_over(self) -> bool:
        return self._at == len(self._block) and not self._next()

    def digest(self) -> str:
        assert self._hash is not None
        return self._hash.hexdigest()

    def _next(self) -> bool:
        block = next((block for block in self._blocks if block), b"")
        if self._hash is not None:
            self._hash.update(block)
        self._block, self._at = block, 0
        return bool(block)


def decoder(encoding: str, where: str) -> Callable[[bytes], Any]:
    """Bytes of one value -> the value.

    Args:
        encoding: "str" (left as bytes), "bytes", "int", "json", "str_int", "str_float", "str_decimal", a NumPy
            type such as "uint16", or "ndarray", "ndarray:TYPE", "ndarray:TYPE:SHAPE".
        where: the column's place, for messages.

    Raises:
        UnsupportedError: any other encoding.
    """
    name, _, details = encoding.partition(":")
    if name in _SCALARS:
        return lambda raw: np.frombuffer(raw, _SCALARS[name]).item()
    if name == "ndarray":
        type_name, _, shape = details.partition(":")
        if not type_name or type_name in _SCALARS:
            kind = _SCALARS[type_name] if type_name else None
            return lambda raw: _array(raw, kind, [int(size) for size in shape.split(",") if size])
    simple: dict[str, Callable[[bytes], Any]] = {
        "str": bytes, "bytes": bytes, "int": lambda raw: int(np.frombuffer(raw, "<i8").item()), "json": json.loads,
        "str_int": int, "str_float": float, "str_decimal": float,
    }  # fmt: skip
    if encoding in simple:
        return simple[encoding]
    why = ", which may run code when read" if encoding == "pkl" else ""
    raise UnsupportedError(f"{where} is encoded as {encoding}{why}; write it as str, json, ndarray or a number")


def _array(raw: bytes, kind: np.dtype[Any] | None, shape: list[int]) -> NDArray[Any]:
    if kind is None:
        kind, raw = _ARRAY_TYPES[raw[0]], raw[1:]
    if not shape:
        num_axes, size = raw[0] >> 2, 1 << (raw[0] & 3)  # the axes' lengths follow, as unsigned integers of this size
        end = 1 + num_axes * size
        shape = np.frombuffer(raw[1:end], f"<u{size}").tolist()
        raw = raw[end:]
    return np.frombuffer(raw, kind).reshape(shape)
