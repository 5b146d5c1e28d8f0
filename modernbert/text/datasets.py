"""A Hugging Face dataset -> documents, a row each, through the `datasets` library.

An address is `hf:NAME[:CONFIG][@SPLIT][#REVISION]`: NAME a name on the hub ("org/name"), a local folder written
by `save_to_disk`, or any folder that `load_dataset` takes; SPLIT is "train" if not given. Rows are streamed:
nothing is downloaded ahead of its reading, and memory holds a few rows. Price: 30,000 rows a second from disk.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.batch import Document
from modernbert.errors import DataError, UnsupportedError
from modernbert.text.records import Fields, OnSkip, documents_of

PREFIX = "hf:"
_ADDRESS = re.compile(r"hf:(?P<name>[^:@#]+)(:(?P<config>[^:@#]+))?(@(?P<split>[^:@#]+))?(#(?P<revision>[^:@#]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Which rows of which dataset. `str` gives what the user wrote."""

    text: str
    name: str
    config: str | None
    split: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `hf:NAME[:CONFIG][@SPLIT][#REVISION]`.

        Raises:
            DataError: it is not of that form.
        """
        found = _ADDRESS.fullmatch(text)
        if not found:
            raise DataError(f"{text}: no such dataset address; write hf:NAME[:CONFIG][@SPLIT][#REVISION]")
        parts = found.groupdict()
        return cls(**parts | {"text": text, "split": parts["split"] or "train"})

    def __str__(self) -> str:
        return self.text

    def identity(self) -> str:
        """What a digest of sources takes in: the commit on the hub, or each file's path, size and time of change.

        Raises:
            DataError: the hub cannot be reached.
        """
        folder = Path(self.name)
        if not folder.is_dir():
            return "\0".join((self.name, self.config or "", self.split, _commit(self.name, self.revision)))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("cache-")]
        rows = [f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}" for path in files]
        return "\0".join((self.config or "", self.split, *rows))


def read_dataset(address: Address, fields: Fields, skip: OnSkip) -> Iterator[Document]:
    """Stream the rows of a dataset.

    Args:
        address: which.
        fields: the columns wanted.
        skip: as `documents_of` takes it.

    Raises:
        DataError: it cannot be reached, has no such config or split, or a column is missing.
        UnsupportedError: `datasets` is not installed.
    """
    rows = open_rows(address)
    if rows.column_names:
        fields.check_columns(rows.column_names, str(address))
        rows = rows.select_columns(fields.among(rows.column_names))
    records = enumerate(guarded(iter(rows), address))
    yield from documents_of(
        ((position, f"{address}, row {position}", record) for position, record in records), fields, str(address), skip
    )


def open_rows(address: Address) -> Any:
    """The dataset to iterate."""
    datasets = _library(address)
    folder = Path(address.name)
    saved = [name for name in ("dataset_dict.json", "state.json") if (folder / name).is_file()]
    try:
        if saved:
            found = datasets.load_from_disk(address.name)
            if saved[0] == "state.json":
                return found
            if address.split not in found:
                raise ValueError(f"it has no split {address.split!r}; its splits are {', '.join(found)}")
            return found[address.split]
        revision = None if folder.is_dir() else _commit(address.name, address.revision)
        return datasets.load_dataset(
            address.name, address.config, split=address.split, revision=revision, streaming=True
        )
    except DataError:
        raise
    except Exception as error:  # the library, its file formats and the network each raise errors of their own
        raise _unreachable(address, error) from error


def guarded(rows: Iterator[dict[str, Any]], address: Address) -> Iterator[dict[str, Any]]:
    """The rows, with one line for whatever the library raises on the way."""
    count = 0
    while True:
        try:
            record = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(
                f"{address} broke off after {count:,} rows ({_first_line(error)}); "
                "run the same command again, or download it and give its folder"
            ) from error
        yield record
        count += 1


@functools.cache
def _commit(name: str, revision: str | None) -> str:
    """The commit that a name stands for; asked once a process, so that what is noted is what is read."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:
        raise _unreachable(f"{PREFIX}{name}", error) from error


def _library(address: Address) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UnsupportedError(
            f"{address} needs the datasets library, which is not installed; pip install 'modernbert[datasets]'"
        ) from error
    return datasets


def _unreachable(address: Address | str, error: Exception) -> DataError:
    return DataError(
        f"{address} cannot be opened ({_first_line(error)}); check its name, config and split, or download it where "
        "there is a network and give its folder"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
