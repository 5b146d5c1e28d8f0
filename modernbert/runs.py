"""Whole runs, assembled in data order: the one module that may import every stage."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modernbert.console import Console
from modernbert.data.pack import PackState, Pieces, in_order, pack
from modernbert.errors import ConfigError, DataError
from modernbert.retrieval import encode
from modernbert.retrieval.encode import open_for_vectors
from modernbert.retrieval.vectors import Counts, check_out
from modernbert.retrieval.windows import How, checked, encode_windows
from modernbert.runtime import Runtime
from modernbert.tasks import load
from modernbert.tasks.embed import Pooling
from modernbert.text import (
    Shards,
    Skips,
    build_shards,
    drop_duplicates_and_short,
    iter_documents,
    load_tokenizer,
    save_tokenizer,
    tokenizer_report,
    train_tokenizer,
)
from modernbert.text.read import Cut, OnSkip
from modernbert.text.shuffled import order_remark
from modernbert.train.recipe import DataSettings

DEFAULT_POSITIONS = 8192  # of a tokenizer before its model is known
REPORT_CHARS = 20_000_000  # a report is about the beginning of a corpus larger than this
LINES_PER_WINDOW = 32  # vectors that are printed come soon rather than fast


def learn_tokenizer(
    files: Sequence[Path],
    *,
    vocab_size: int,
    out: Path,
    prefix_space: bool = True,
    sample_bytes: int = 64 * 10**6,
    text_field: str = "text",
    documents: Cut = "file",
    exclude: Sequence[str] = (),
    seed: int = 0,
    console: Console,
) -> dict[str, Any]:
    """Train a tokenizer on files, save it, and report how it fits a sample of them."""
    refuse_existing(out, "tokenizer.json")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder; choose another --out")
    skips, sample = Skips(), []
    found = iter_documents(files, text_field=text_field, documents=documents, exclude=exclude, on_skip=skips.add)

    def texts() -> Iterator[str]:
        sampled_chars = 0
        for document in drop_duplicates_and_short(found, skips=skips):
            if sampled_chars < REPORT_CHARS:
                sample.append(document.text)
                sampled_chars += len(document.text)
            yield document.text

    reading = texts()
    first = next(reading, None)
    if first is None:
        raise nothing_read(files, skips)
    with console.progress("reading") as update:
        tokenizer = train_tokenizer(
            itertools.chain([first], reading),
            vocab_size=vocab_size, prefix_space=prefix_space, sample_bytes=sample_bytes, seed=seed,
            progress=lambda done, size: update(done, f"documents, {size / 1e6:.0f} MB sampled"),
        )  # fmt: skip
    if skips.counts:
        console.remark(
            "left out: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(skips.counts.items()))
        )
    save_tokenizer(tokenizer, out, model_max_length=DEFAULT_POSITIONS)
    console.remark(f"saved to {out}")
    return {**tokenizer_report(tokenizer, sample), "left_out": dict(skips.counts)}


def compare_tokenizers(
    tokenizer: str,
    files: Sequence[Path],
    *,
    against: str | None = None,
    text_field: str = "text",
    documents: Cut = "file",
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """How a tokenizer fits some text (its first 20 million characters), beside another one's figures if named."""
    other = (against, load_tokenizer(against)) if against else None
    skips, texts, num_chars = Skips(), [], 0
    for document in iter_documents(
        files, text_field=text_field, documents=documents, exclude=exclude, on_skip=skips.add
    ):
        texts.append(document.text)
        num_chars += len(document.text)
        if num_chars >= REPORT_CHARS:
            break
    if not texts:
        raise nothing_read(files, skips)
    report = tokenizer_report(load_tokenizer(tokenizer), texts, against=other)
    return {**report, "left_out": dict(skips.counts)}


def build_data(
    sources: Sequence[Path], tokenizer: str, out: Path, *, console: Console, **settings: Any
) -> dict[str, Any]:
    """`build_shards` in view of a person. Returns the manifest."""
    with console.progress("tokenising") as update:
        return build_shards(
            sources, tokenizer=load_tokenizer(tokenizer), out=out, **settings,
            progress=lambda done, tokens: update(done, f"documents, {tokens / 1e6:.2f} M tokens"),
        )  # fmt: skip


def inspect_data(folder: str | Path, sequence_length: int) -> dict[str, Any]:
    """The manifest of a shard folder, and what packing its training split to a sequence length does."""
    shards = Shards.open(folder)
    pieces = Pieces(shards.lengths, sequence_length)
    budget = 8 * sequence_length
    packed = pack(pieces.lengths, budget, PackState(), longest=sequence_length, draw=in_order(len(pieces)))
    filled = [pieces.lengths(positions).sum() / budget for positions, _ in itertools.islice(packed, 200)]
    filled = filled[:-1] or filled  # the end of the data is no fault of packing
    cut = pieces.share_cut()
    sentence = (
        f"At {sequence_length:,} tokens {cut['documents']:.1%} of the documents, with {cut['tokens']:.1%} of the tokens, "
        f"are cut into pieces; micro-batches of {budget:,} tokens are {sum(filled) / len(filled):.2%} full."
    )
    remarks = shards.manifest.get("remarks")
    if remarks is None:  # built before there were any
        remarks = [order] if (order := order_remark(shards)) else []
    wanted = DataSettings.model_fields["warn_long_share"].default
    if cut["tokens"] < wanted:
        remarks = [*remarks, (
            f"Only {cut['tokens']:.1%} of the tokens lie in documents longer than {sequence_length:,} tokens (a recipe asks "
            f"for {wanted:.0%}): were {sequence_length:,} the context to extend, to {DEFAULT_POSITIONS:,} say, there would be "
            "little to learn it from; add longer documents, or give them more weight in the mixture."
        )]  # fmt: skip
    return {
        **shards.manifest,
        "remarks": remarks,
        "packing": {
            "sequence_length": sequence_length, "documents_cut": cut["documents"], "tokens_in_cut_documents": cut["tokens"],
            "filled": sum(filled) / len(filled), "sentence": sentence,
        },
    }  # fmt: skip


def answer_masks(
    model: str,
    texts: Iterable[str],
    *,
    top_k: int = 5,
    joint: bool = False,
    device: str = "auto",
    ignore_unexpected: bool = False,
) -> Iterator[dict[str, Any]]:
    """Answer the masks of each text, as plain data."""
    loaded = load(model, device=Runtime.detect(device=device).device, ignore_unexpected=ignore_unexpected)
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            masks = loaded.fill_mask(text, top_k, joint=joint)
        except DataError as error:
            raise DataError(f"text {number}: {error}") from error
        yield {"text": text, "masks": [[prediction._asdict() for prediction in mask] for mask in masks]}


def encode_to_file(
    model: str,
    texts: Iterable[str],
    out: Path,
    *,
    pooling: Pooling | None,
    runtime: Runtime,
    console: Console,
    **settings: Any,
) -> dict[str, Any]:
    """`encode` into a file, in view of a person. Returns its path, counts and the pace of this call."""
    check_out(out)
    loaded = open_for_vectors(model, pooling=pooling, device=runtime.device)
    pace = Pace()

    def show(counts: Counts) -> None:
        if pace.before is None and counts.texts:
            console.remark(f"going on with {out} behind text {counts.texts:,}")
        pace.see(counts)
        note = "texts  {texts_per_second:,.0f} texts/s, {tokens_per_second:,.0f} tokens/s"
        update(counts.texts, note.format(**pace.figures()))

    with console.progress("encoding") as update, runtime.autocast():
        path = encode(loaded, texts, pooling=pooling, out=out, progress=show, **settings)
    dimensions = settings.get("truncate_dim") or loaded.config.hidden_size
    return {"path": str(path), "dimensions": dimensions, **asdict(pace.now), **pace.figures()}


@dataclass
class Pace:
    """How much is encoded, and how fast by this call."""

    before: Counts | None = None  # by earlier calls
    now: Counts = field(default_factory=Counts)
    began_at: float = 0.0

    def see(self, counts: Counts) -> None:
        """Take in the counts of a moment, first those before any work."""
        if self.before is None:
            self.before, self.began_at = replace(counts), time.monotonic()
        self.now = counts

    def figures(self) -> dict[str, float]:
        """Seconds until now, texts and tokens a second."""
        before, seconds = self.before or Counts(), max(time.monotonic() - self.began_at, 1e-9)
        return {
            "seconds": seconds,
            "texts_per_second": (self.now.texts - before.texts) / seconds,
            "tokens_per_second": (self.now.tokens - before.tokens) / seconds,
        }


def encode_to_lines(
    model: str, texts: Iterable[str], *, pooling: Pooling | None, runtime: Runtime, **settings: Any
) -> Iterator[dict[str, Any]]:
    """Each text with its vector, as plain data."""
    loaded = open_for_vectors(model, pooling=pooling, device=runtime.device)
    how = How.of(loaded, pooling=pooling, texts_per_window=LINES_PER_WINDOW, **settings)
    windows = encode_windows(loaded, checked(texts), how, Counts(), lambda _counts: None)
    while True:
        with runtime.autocast():  # around the work alone, not around what the reader does with a line
            found = next(windows, None)
        if found is None:
            return
        for text, vector in zip(found[0], found[1].tolist(), strict=True):
            yield {"text": text, "vector": vector}


def given_texts(
    texts: Sequence[str], files: Sequence[Path], lines: Iterable[str], *, text_field: str, documents: Cut, skips: Skips
) -> Iterator[str]:
    """The texts themselves, those in files, or else lines that are not blank; whatever is left out is counted.

    Raises:
        ConfigError: both texts and files.
        DataError: there is no text.
    """
    if texts and files:
        raise ConfigError(f"give texts or --from {files[0]}, not both")
    found = iter(texts)
    if files:
        read = iter_documents(files, text_field=text_field, documents=documents, on_skip=_refuse_lost_records(skips))
        found = (document.text for document in read)
    elif not texts:
        found = (line.rstrip("\r\n") for line in _without_blank(lines, skips))
    first = next(found, None)
    if first is None:
        raise nothing_read(files or [Path("standard input")], skips)
    return itertools.chain([first], found)


def _refuse_lost_records(skips: Skips) -> OnSkip:
    """A corpus may lose a line, but vectors stand for the records of their file, one by one."""

    def on_skip(reason: str, name: str) -> None:
        if reason in ("no text", "not valid JSON"):
            raise DataError(f"{name}: {reason}; repair or remove that record, as each gets a vector")
        skips.add(reason, name)

    return on_skip


def _without_blank(lines: Iterable[str], skips: Skips) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield line
            else:
                skips.add("blank", f"line {number}")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text behind line {number}; convert it or leave it out") from error


def nothing_read(files: Sequence[Path], skips: Skips) -> DataError:
    """What to say of files without a document."""
    left_out = f"left out: {skips}; " if skips.counts else ""
    return DataError(f"no documents in {', '.join(map(str, files))}; {left_out}give some text")


def refuse_existing(folder: Path, name: str) -> None:
    """Raise ConfigError where a folder already holds a result that would be overwritten."""
    if (folder / name).exists():
        raise ConfigError(f"{folder} already holds a {name}; choose another --out or delete it")
