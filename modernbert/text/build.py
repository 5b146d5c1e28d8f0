"""Text files -> a folder of shards (see `shards` for what lies in it).

Steps: read, drop exact duplicates; look at each document alone (language, evaluation texts, signature, ids: `filters`,
here or in several processes); drop near-duplicates; draw the split from the document's hash; append to the open shard
of that split (`writer`); a full shard is synced, renamed into place and noted in `build.json`; `manifest.json` comes
last.

A build that was cut off goes on where it stopped: the sources are read, hashed and filtered again, documents that lie
in finished shards are not tokenised again, and the result is the same, byte for byte, for any number of workers. This
works because the contents of a shard depend on the order of its split's documents alone.

Price: 6 MB of text a second on two cores (1.4 million tokens), half of that with all three filters; 90 MB a second
through what is finished already where nothing is filtered. Near-duplicates are tokenised before they are dropped.
Memory: `memory_bytes` beside Python with its libraries (230 MB, most of it torch), the tokenizer (60 MB for 50,000
entries), the tables of the filters and ten times the longest document (its bytes, its text, its ids; thirteen with
near-duplicates); a file of gigabytes should be read by "line" or "paragraph". The lists of duplicates go to disk
beyond their share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from modernbert.batch import Document
from modernbert.errors import ConfigError, DataError
from modernbert.text.clean import Seen, document_hash, drop_duplicates_and_short
from modernbert.text.crew import Crew
from modernbert.text.cut import BLOCK_CHARS
from modernbert.text.filters import NEAR, Filters, Looked
from modernbert.text.folder import BuildFolder, finished_build, saying_what_to_do
from modernbert.text.near import NearDuplicates
from modernbert.text.read import Cut, Paths, Skips, digest_of, iter_documents
from modernbert.text.shards import Shards
from modernbert.text.shuffled import order_remark
from modernbert.text.tokenizer import for_plain_text, num_ids, save_tokenizer, tokenizer_fingerprint

DEFAULT_MEMORY = 512 * 2**20
LEAST_MEMORY = 16 * 2**20
_BATCH_CHARS = 2**20
_BYTES_PER_CHAR = 320  # while tokenising; measured: 100 for English, 280 for Chinese


def build_shards(
    sources: Paths,
    *,
    tokenizer: Tokenizer,
    out: str | Path,
    heldout: float = 0.01,
    min_tokens: int = 8,
    shard_tokens: int = 64 * 2**20,
    text_field: str = "text",
    score_field: str | None = None,
    documents: Cut = "file",
    exclude: Iterable[str] = (),
    filters: Filters | None = None,
    seed: int = 0,
    model_max_length: int = 8192,
    num_workers: int = 1,
    memory_bytes: int = DEFAULT_MEMORY,
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
        text_field: the field of a record (JSON line, csv or parquet row) that holds its text.
        score_field: the field that holds a number saying how good the text is, kept beside the tokens; none if not
            given.
        documents: what one document is in a plain file: "file", "line" or "paragraph".
        exclude: shell patterns of files to pass over.
        filters: what to leave out beside empty texts and exact duplicates.
        seed: draws another held-out split.
        model_max_length: noted in tokenizer_config.json, in tokens; nothing is cut to it here.
        num_workers: processes that filter and tokenise; 1 is this process, with the tokenizer's threads. A script asks
            for more under `if __name__ == "__main__":` only.
        memory_bytes: what the build may take beside what the module says; 16 MB or more. Changes no result.
        progress: called after each batch with documents read and tokens written.

    Returns:
        The manifest; its "remarks" are sentences for a person.

    Raises:
        ConfigError: settings out of range, `out` holds another build, or a filter whose library is not installed.
        DataError: sources that cannot be read, no document left over, another process builds there, or the disk is full.
    """
    _check_settings(heldout, min_tokens, shard_tokens, seed, num_workers, memory_bytes)
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    exclude, filters, folder = tuple(exclude), filters or Filters(), Path(out)
    settings = {
        "sources": [str(path) for path in sources],
        "sources_digest": digest_of(sources, exclude),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "heldout": heldout,
        "min_tokens": min_tokens,
        "shard_tokens": shard_tokens,
        "text_field": text_field,
        "documents": documents,
        "exclude": list(exclude),
        "seed": seed,
        **({"score_field": score_field} if score_field else {}),
        **filters.describe(),
    }
    if (manifest := finished_build(folder, settings)) is not None:
        return manifest
    evaluation = filters.evaluation_texts()
    batch_chars = max(min(_BATCH_CHARS, memory_bytes // 2 // _BYTES_PER_CHAR // num_workers), 1)
    crew = Crew(num_workers, for_plain_text(tokenizer), filters, evaluation, batch_chars)
    shape = {"vocab_size": num_ids(tokenizer), "shard_tokens": shard_tokens, "scores": score_field is not None}
    with BuildFolder.filling(folder, settings, **shape) as target:
        build = _Build(target, crew, filters, min_tokens=min_tokens, cache_bytes=memory_bytes // 8)
        skips = build.skips
        found = iter_documents(
            sources,
            text_field=text_field,
            score_field=score_field,
            documents=documents,
            on_skip=skips.add,
            exclude=exclude,
        )
        fresh = drop_duplicates_and_short(found, skips=skips, seen=build.seen)
        build.take_all(_batches(fresh, batch_chars), progress)
        target.close()
        skips.counts.update({"too short": count} if (count := target.num_too_short) else {})
        if not target.num_documents["train"]:
            target.forget()
            raise DataError(_nothing_left(target, skips))
        save_tokenizer(tokenizer, folder, model_max_length=model_max_length)
        manifest = target.describe(skips)
        order = order_remark(Shards(folder, "train", manifest))
        remarks = [*(evaluation.remarks() if evaluation else []), *build.remarks(), *([order] if order else [])]
        return target.finish({**manifest, "remarks": remarks})


class _Build:
    """What looks at documents one after another, and so knows of those before."""

    def __init__(self, target: BuildFolder, crew: Crew, filters: Filters, *, min_tokens: int, cache_bytes: int) -> None:
        self.target, self.skips = target, Skips()
        self.seen = Seen(target.folder, cache_bytes)
        self._near = None
        if filters.near_duplicates is not None:
            self._near = NearDuplicates(filters.near_duplicates, target.folder, cache_bytes)
        self._crew, self._min_tokens = crew, min_tokens
        self._num_read = self._num_forced = self._num_uncut = 0

    def take_all(self, batches: Iterable[list[Document]], progress: Callable[[int, int], None] | None) -> None:
        """Filter, tokenise and write."""
        for batch, looked in self._crew.look(batches, tokenise=lambda: not self.target.is_catching_up):
            for document, found in zip(batch, looked, strict=True):
                self._take(document, found)
            if progress is not None:
                progress(self._num_read, self.target.num_tokens)

    def remarks(self) -> list[str]:
        """What a person should know of how the texts were tokenised."""
        remarks = []
        if self._num_uncut:
            remarks.append(
                f"Where this tokenizer splits a text is not known, so {self._num_uncut:,} documents of more than "
                f"{BLOCK_CHARS:,} characters were tokenised as a whole, which takes 100 times their size in memory."
            )
        if self._num_forced:
            remarks.append(
                f"{self._num_forced:,} runs of {BLOCK_CHARS:,} characters without a space or a stop were cut to be "
                "tokenised; ids beside these cuts may differ from those of the text as a whole."
            )
        return remarks

    def _take(self, document: Document, found: Looked) -> None:
        self._num_read += 1
        name = f"{document.source}#{document.position}"
        if found.refused is not None:
            self.skips.add(found.refused[0], f"{name} ({found.refused[1]})")
            return
        if self._near is not None and found.signature is not None:
            copied = self._near.find(found.signature, name)
            if copied is not None:
                self.skips.add(NEAR, f"{name} ({copied[1]:.2f} of {copied[0]})")
                return
        self._num_forced += found.num_forced
        self._num_uncut += found.is_uncut
        split = self.target.split_of(document_hash(document.text))
        if self.target.is_done(split):
            return
        ids = self._crew.here.tokenise([document.text])[0] if found.ids is None else found.ids
        with saying_what_to_do(self.target.folder):
            self.target.add(
                split,
                ids,
                num_text_bytes=len(document.text.encode()),
                min_tokens=self._min_tokens,
                score=document.score,
            )


def _check_settings(
    heldout: float, min_tokens: int, shard_tokens: int, seed: int, num_workers: int, memory_bytes: int
) -> None:
    if not 0 <= heldout < 1:
        raise ConfigError(f"heldout={heldout} is out of range; it may be 0 up to, not including, 1")
    for name, value, least in (
        ("min_tokens", min_tokens, 1),
        ("shard_tokens", shard_tokens, 1),
        ("seed", seed, 0),
        ("workers", num_workers, 1),
    ):
        if value < least:
            raise ConfigError(f"{name}={value} is out of range; the least is {least}")
    if memory_bytes < LEAST_MEMORY:
        raise ConfigError(
            f"memory={memory_bytes / 2**20:.3g} is out of range; the least is {LEAST_MEMORY >> 20} megabytes"
        )


def _batches(documents: Iterable[Document], batch_chars: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += len(document.text)
        if num_chars >= batch_chars:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _nothing_left(target: BuildFolder, skips: Skips) -> str:
    if target.num_documents["heldout"]:
        return (
            f"all {target.num_documents['heldout']} documents fell into the held-out split and none is left to "
            f"train on; give more text, or a smaller --heldout than {target.settings['heldout']}"
        )
    sources = ", ".join(target.settings["sources"])
    return f"no documents in {sources}; left out: {skips if skips.counts else 'nothing, for nothing was there'}"
