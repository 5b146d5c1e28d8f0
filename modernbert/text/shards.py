"""A folder of shards -> documents of token ids, mapped into memory.

On disk, in one flat folder: `shard-00000.bin` (ids of documents laid end to end, without special tokens,
uint16, or uint32 for vocabularies above 65,536), `shard-00000.idx` (uint64, little-endian: n + 1 offsets in
tokens), where scores were kept `shard-00000.score` (float32, little-endian: one for each document), the same as
`heldout-…` for the held-out split, the tokenizer, and `manifest.json`, written last: without it there is no data set.
Price: opening reads the manifest and a few kilobytes per shard; a document costs one slice. Shards at an address
(s3://…) are copied to this machine first (`local_folder`).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import DataError
from modernbert.patience import Patience
from modernbert.remote import Entry, Remote, cache_folder, is_address

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PREFIXES = {"train": "shard", "heldout": "heldout"}
INDEX_DTYPE = np.dtype("<u8")
SCORE_DTYPE = np.dtype("<f4")

Split: TypeAlias = Literal["train", "heldout"]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


_here: dict[str, Path] = {}  # by address: a process sees one version of its shards, and asks once


def local_folder(folder: str | Path, *, remark: Callable[[str], None] | None = None) -> Path:
    """The folder itself; of an address, its copy in the cache, which is brought up to date once in a process.

    Another manifest there is another folder here, so that nothing changes under a process that reads the earlier one.

    Args:
        folder: of shards, here or at an address.
        remark: is told what takes long.

    Raises:
        ConfigError: no package for such addresses.
        DataError: nothing finished there, no answer, or no room here; the message names address, reason and remedy.
    """
    if not is_address(folder):
        return Path(folder)
    address = str(folder).rstrip("/")
    if address not in _here:
        remote = Remote(address, remark=remark)
        raw = _manifest_at(remote)
        copy = cache_folder(address, "shards", hashlib.sha256(raw).hexdigest())
        entries = _entries(_parse_manifest(raw, f"{address}/{MANIFEST}"))
        if not (copy / MANIFEST).exists():  # written last
            entries += _tokenizer_entries(remote, entries)
        remote.mirror(copy, entries, last=(MANIFEST, raw))
        _here[address] = copy
    return _here[address]


def _manifest_at(remote: Remote) -> bytes:
    raw = remote.read_bytes(MANIFEST)
    if raw is None:
        raise DataError(
            f"{remote.address} has no {MANIFEST}: no finished shards there; check the address, or put them there again"
        )
    return raw


def _entries(manifest: dict[str, Any]) -> list[Entry]:
    """The files that a manifest speaks for."""
    dtype = np.dtype(manifest["dtype"])
    entries = []
    for shard in itertools.chain.from_iterable(split["shards"] for split in manifest["splits"].values()):
        sizes = {"bin": shard["tokens"] * dtype.itemsize, "idx": (shard["documents"] + 1) * INDEX_DTYPE.itemsize}
        if manifest.get("scores"):
            sizes["score"] = shard["documents"] * SCORE_DTYPE.itemsize
        hashes = {"bin": shard.get("sha256"), "score": shard.get("score_sha256")}
        entries += [
            Entry(name=f"{shard['name']}.{ending}", bytes=size, sha256=hashes.get(ending))
            for ending, size in sizes.items()
        ]
    return entries


def _tokenizer_entries(remote: Remote, shards: list[Entry]) -> list[Entry]:
    """The other files of a folder at an address, of which only it knows the sizes; refuses one that lacks a shard."""
    there = remote.files()
    for entry in shards:
        if there.get(entry.name) != entry.bytes:
            state = "is missing" if entry.name not in there else f"has {there[entry.name]:,} bytes"
            raise DataError(
                f"{remote.address}/{entry.name} {state}, and the manifest says {entry.bytes:,} bytes; put the folder there again"
            )
    names = [name for name in there if name.startswith("tokenizer") and name.endswith(".json") and "/" not in name]
    return [Entry(name=name, bytes=there[name]) for name in names]


def read_manifest(folder: str | Path, *, patience: Patience | None = None) -> dict[str, Any]:
    """Read what a finished build says of itself, here or at an address, of which nothing else is fetched.

    Args:
        folder: of shards, here or at an address.
        patience: how long to wait for a service that does not answer.

    Raises:
        ConfigError: no package for such addresses.
        DataError: no manifest, one that is damaged, or one of another version.
    """
    if is_address(folder):
        remote = Remote(str(folder), patience=patience)
        return _parse_manifest(_manifest_at(remote), f"{remote.address}/{MANIFEST}")
    path = Path(folder) / MANIFEST
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise DataError(f"{folder}: no such folder; build it with `modernbert data build`") from error
        raise DataError(f"{folder} has no {MANIFEST}: the build did not finish; run the same command again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); delete the folder and build it again") from error
    return _parse_manifest(raw, path)


def _parse_manifest(raw: bytes, path: str | Path) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); delete the folder and build it again") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} is of version {version}, and this package reads {FORMAT_VERSION}; build it again")
    return manifest


class Shards:
    """One split of a finished build. Cheap to open, and to send to worker processes, which open it again."""

    def __init__(self, folder: Path, split: Split, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self.vocab_size: int = manifest["vocab_size"]
        self.dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.tokenizer_path = folder / "tokenizer.json"
        shards = manifest["splits"][split]["shards"]
        self.num_documents = sum(shard["documents"] for shard in shards)
        self.num_tokens = sum(shard["tokens"] for shard in shards)
        self._first_documents = list(itertools.accumulate((shard["documents"] for shard in shards), initial=0))
        self._tokens = [self._map(shard, "bin", self.dtype, shard["tokens"]) for shard in shards]
        self._offsets = [self._map(shard, "idx", INDEX_DTYPE, shard["documents"] + 1) for shard in shards]
        self._check_contents(shards)
        self._scores = None
        if manifest.get("scores"):
            self._scores = [self._map(shard, "score", SCORE_DTYPE, shard["documents"]) for shard in shards]

    @classmethod
    def open(cls, folder: str | Path, split: Split = "train") -> Shards:
        """Open a split and check its files against the manifest.

        Args:
            folder: of a finished build, here or at an address (s3://…).
            split: which.

        Raises:
            DataError: the build is unfinished, the split is empty, or a file is missing or cut short; of an address, as
                `local_folder`.
        """
        folder = local_folder(folder)
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise DataError(f"{folder} has no split {split!r}; it has {', '.join(manifest['splits'])}")
        if not manifest["splits"][split]["shards"]:
            raise DataError(
                f"{folder} has no documents in its {split} split (heldout was "
                f"{manifest['settings']['heldout']}); build with another --heldout or more text"
            )
        return cls(Path(folder), split, manifest)

    def tokens(self, document_index: int, start: int = 0, stop: int | None = None) -> NDArray[np.unsignedinteger]:
        """Ids of one document from token `start` up to `stop`, a view of the file (read-only).

        Raises:
            IndexError: no such document.
        """
        if not 0 <= document_index < self.num_documents:
            raise IndexError(f"document {document_index} of {self.num_documents}")
        shard = bisect.bisect_right(self._first_documents, document_index) - 1
        local = document_index - self._first_documents[shard]
        first, last = (int(offset) for offset in self._offsets[shard][local : local + 2])
        return self._tokens[shard][first:last][start:stop]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, in order. Eight bytes of memory a document, read on first use.

        Raises:
            DataError: an index whose offsets do not rise.
        """
        lengths = np.concatenate([np.diff(offsets.astype(np.int64)) for offsets in self._offsets])
        if lengths.min() < 1:
            raise DataError(f"{self.folder}: the {self.split} index is damaged; delete the folder and build it again")
        return lengths

    @cached_property
    def scores(self) -> NDArray[np.float32] | None:
        """The score of each document, in order; None where the build kept none. Four bytes a document, on first use."""
        return None if self._scores is None else np.concatenate(self._scores)

    def __len__(self) -> int:
        return self.num_documents

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map would be pickled as a copy of the whole file.
        return (Shards.open, (self.folder, self.split))

    def _map(self, shard: dict[str, Any], ending: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        path = self.folder / f"{shard['name']}.{ending}"
        expected = count * dtype.itemsize
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise DataError(
                f"{path} {state}, and the manifest says {expected:,} bytes; copy it again, or delete the "
                "folder and build it again"
            )
        return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

    def _check_contents(self, shards: list[dict[str, Any]]) -> None:
        """Look at both ends of each file: enough to catch a mixed-up copy, cheap enough for every worker."""
        for shard, tokens, offsets in zip(shards, self._tokens, self._offsets, strict=True):
            largest = max(int(tokens[:4096].max()), int(tokens[-4096:].max()))
            if largest >= self.vocab_size or offsets[0] != 0 or offsets[-1] != shard["tokens"]:
                raise DataError(
                    f"{self.folder / shard['name']}: contents do not fit the manifest (id {largest}, "
                    f"vocabulary {self.vocab_size}, offsets {offsets[0]} to {offsets[-1]}); build the folder again"
                )


def length_histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Documents and tokens by length in powers of two, empty rows left out.

    Args:
        lengths: tokens of each document, 1 or more.

    Returns:
        Rows of "from" and "to" (both included), "documents" and "tokens".
    """
    powers = np.frexp(lengths)[1] - 1
    documents = np.bincount(powers)
    tokens = np.bincount(powers, weights=lengths)
    return [
        {"from": 2**power, "to": 2 ** (power + 1) - 1, "documents": int(count), "tokens": int(tokens[power])}
        for power, count in enumerate(documents)
        if count
    ]


def long_share(lengths: NDArray[np.int64], tokens: int) -> float:
    """Share of all tokens that lie in documents of more than so many tokens."""
    return float(lengths[lengths > tokens].sum() / lengths.sum())


def summarize(manifest: dict[str, Any]) -> str:
    """Say in Markdown what a build holds: a row per split, what was left out, and the lengths."""
    lines = ["| split | documents | tokens | bytes/token | shards |", "|---|--:|--:|--:|--:|"]
    for name, split in manifest["splits"].items():
        density = f"{split['text_bytes'] / split['tokens']:.2f}" if split["tokens"] else "–"
        shards = len(split["shards"])
        lines.append(f"| {name} | {split['documents']:,} | {split['tokens']:,} | {density} | {shards} |")
    left_out = ", ".join(f"{entry['count']:,} {reason}" for reason, entry in manifest["skipped"].items())
    lines += ["", f"Left out: {left_out or 'nothing'}.", ""]
    lines += [line for remark in manifest.get("remarks", []) for line in (remark, "")]
    train = manifest["splits"]["train"]
    if "score_quantiles" in train:
        least, first, median, third, most = (f"{score:.4g}" for score in train["score_quantiles"])
        lines += [
            f"Scores: {least} to {most}; a quarter below {first}, half below {median}, a quarter above {third}.",
            "",
        ]
    lines += ["| tokens in a document | documents | share of tokens |", "|---|--:|--:|"]
    for row in train["lengths"]:
        share = row["tokens"] / train["tokens"]
        lines.append(f"| {row['from']:,} to {row['to']:,} | {row['documents']:,} | {share:.1%} |")
    return "\n".join(lines)
