"""A file -> its bytes in blocks of 1 MiB, decompressed on the way, and the lines in them.

Price: one block in memory, and the line that is open. A file that was cut short raises one of `DAMAGED`
instead of ending early, for silence would cost data.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from modernbert.errors import DataError

Item = TypeVar("Item")
BOM = b"\xef\xbb\xbf"
COMPRESSIONS = frozenset({".gz", ".zst"})
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_BLOCK_BYTES = 2**20


def refusing_damage(items: Iterable[Item], path: Path, what: str) -> Iterator[Item]:
    """Pass items on; damage that shows while they are read becomes one line that says how many (`what`) came before.

    Raises:
        DataError: the file is cut short, damaged, or cannot be read.
    """
    count = 0
    try:
        for item in items:
            yield item
            count += 1
    except DAMAGED as error:
        raise DataError(
            f"{path} is cut short or damaged after {count:,} {what}; fetch it again or leave it out"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_blocks(path: Path, compression: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file.

    Args:
        path: the file.
        compression: ".gz", ".zst", ".bz2", or "" for none.

    Raises:
        EOFError: (or another of `DAMAGED`) where an archive ends too early or is none.
        OSError: as from reading.
    """
    with path.open("rb") as raw:
        blocks = iter(lambda: raw.read(_BLOCK_BYTES), b"")
        if compression and path.stat().st_size == 0:
            raise EOFError
        if compression == ".zst":
            yield from _unzstd(blocks)
        elif compression == ".bz2":
            yield from _unbz2(blocks)
        else:
            plain = gzip.GzipFile(fileobj=raw) if compression else raw
            yield from iter(lambda: plain.read(_BLOCK_BYTES), b"")


def _unzstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard  # here, so that opening a model does not need it

    # Frame by frame, because zstandard's own stream_reader ends a file that was cut short without a word.
    decoder = None
    for block in blocks:
        rest = block
        while rest:
            decoder = decoder or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                data = decoder.decompress(rest)
            except zstandard.ZstdError as error:
                raise EOFError from error
            if data:
                yield data
            rest, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None:
        raise EOFError


def _unbz2(blocks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = bz2.BZ2Decompressor()
    for block in blocks:
        try:
            yield decoder.decompress(block)
        except OSError as error:  # bz2's word for damage
            raise EOFError from error
    if not decoder.eof or decoder.unused_data:
        raise EOFError


def lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Cut blocks into lines, without their \n or \r\n."""
    open_line: list[bytes] = []
    for block in blocks:
        head, *rest = block.split(b"\n")
        open_line.append(head)
        for line in rest:
            yield b"".join(open_line).removesuffix(b"\r")
            open_line = [line]
    if last := b"".join(open_line):
        yield last.removesuffix(b"\r")
