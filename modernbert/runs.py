"""Whole runs, assembled in data order: the one module that may import every stage."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import modernbert
from modernbert.console import Console, Update
from modernbert.data import MlmBatches
from modernbert.data.pack import PackState, Pieces, pack
from modernbert.errors import CheckpointError, ConfigError, DataError
from modernbert.evaluate.machine import described_commit
from modernbert.retrieval import encode
from modernbert.retrieval.pooling import Pooling, pooling_of
from modernbert.retrieval.vectors import Counts, check_out
from modernbert.retrieval.windows import How, checked, encode_windows
from modernbert.runtime import Precision, Runtime, deterministic_algorithms
from modernbert.settings import override, read_recipe
from modernbert.tasks import EncoderModel, MaskedLM, load
from modernbert.text import (
    Shards,
    Skips,
    build_shards,
    drop_duplicates_and_short,
    iter_documents,
    load_tokenizer,
    save_tokenizer,
    special_ids,
    tokenizer_report,
    train_tokenizer,
)
from modernbert.text.read import Cut
from modernbert.text.shards import Split
from modernbert.train.checkpoint import Progress, RunFolder
from modernbert.train.log import read_metrics
from modernbert.train.loop import Hooks, evaluate_on, fit
from modernbert.train.optim import build_optimizer
from modernbert.train.peak import peak_flops
from modernbert.train.recipe import PhaseSettings, PretrainRun, refuse_other_recipe

DEFAULT_POSITIONS = 8192  # of a tokenizer before its model is known
REPORT_CHARS = 20_000_000  # a report is about the beginning of a corpus larger than this
LINES_PER_WINDOW = 32  # vectors that are printed come soon rather than fast


def pretrain(run: PretrainRun, out: str | Path, runtime: Runtime, hooks: Hooks | None = None) -> Path:
    """Pretrain by masked language modelling, or go on with the unfinished run in `out`.

    Args:
        run: the recipe.
        out: the run's folder.
        runtime: device and precision.
        hooks: callbacks for rows, checkpoints and remarks.

    Returns:
        The newest checkpoint.

    Raises:
        ConfigError: `out` holds a run with other settings.
        DataError: shards that cannot be used.
        TrainingError: the run had to stop.
    """
    hooks = hooks or Hooks()
    run = run.resolve()
    shards = Shards.open(run.data.path, split="train")
    tokenizer = load_tokenizer(run.data.path)
    config = run.model.config(shards.vocab_size, special_ids(tokenizer))
    held_out = mlm_batches(run, run.phases[0], split="heldout")
    with RunFolder.locked(Path(out)) as folder, deterministic_algorithms(run.loop.deterministic):
        about = {"recipe": run.model_dump(mode="json"), "data": data_fingerprint(shards)}
        if folder.recipe is not None:
            refuse_other_recipe(folder.recipe, run, str(out))
            if folder.about["data"] != about["data"]:
                raise ConfigError(f"{run.data.path} is not the data that {out} began with; give that, or another --out")
        if folder.finished:
            hooks.on_remark(f"{out} is finished: {run.loop.tokens:,} tokens; nothing to do")
            return folder.newest()

        task = MaskedLM(config, tokenizer, out_dropout=run.model.attention_dropout).draw(run.seed).to(runtime.device)
        task.encoder.reproducible = True  # so that a run that goes on evaluates to the bit as before
        optimizer = build_optimizer(task, run.optim, run.phases[0].lr)
        progress = Progress()
        peak, peak_source = peak_flops(config, runtime, run.phases[0].micro_batch_tokens)
        hooks.on_remark(f"peak for MFU: {peak / 1e9:,.0f} GFLOP/s ({peak_source})")
        torch.manual_seed(run.seed)  # for dropout; all else draws from generators of its own
        if folder.checkpoints():
            progress, remarks = folder.restore(task, optimizer, runtime)
            for remark in (f"going on with {out} behind step {progress.step:,}", *remarks):
                hooks.on_remark(remark)
        folder.write_about(
            **about, status="unfinished", environment=environment(runtime), peak_flops=peak, peak_source=peak_source
        )

        def evaluate(model: EncoderModel) -> dict[str, float]:
            return evaluate_on(model, held_out.once(), runtime, run.loop.eval_size_tokens)

        fit(
            task, optimizer, run, lambda phase: mlm_batches(run, phase), evaluate, progress, folder, runtime, peak, hooks
        )  # fmt: skip
        folder.write_about(status="finished")
        return folder.newest()


def pretrain_recipe(
    recipe: str,
    settings: Sequence[str],
    out: Path,
    *,
    device: str = "auto",
    num_threads: int | None = None,
    precision: Precision = "auto",
    console: Console,
) -> dict[str, Any]:
    """`pretrain` for a recipe's name or file with `key=value` changes, in view of a person.

    Returns:
        The newest checkpoint, and its last evaluation.
    """
    run = PretrainRun.parse(override(read_recipe(recipe), settings))
    runtime = Runtime.detect(device=device, precision=precision, num_threads=num_threads)
    with console.progress("pretraining", run.loop.tokens) as update:
        checkpoint = pretrain(run, out, runtime, Hooks(on_row=row_shower(console, update), on_remark=console.remark))
    evaluations = [row for row in read_metrics(out) if row["kind"] == "eval"]
    if not evaluations:
        raise CheckpointError(f"{out}/metrics.jsonl holds no evaluation any more; the checkpoint is {checkpoint}")
    last = evaluations[-1]
    return {"checkpoint": str(checkpoint), **{name: last[name] for name in ("step", "tokens", "loss", "accuracy")}}


def row_shower(console: Console, update: Update) -> Callable[[dict[str, Any]], None]:
    """Show each row of a run: steps on the bar, evaluations as lines."""

    def show(row: dict[str, Any]) -> None:
        if row["kind"] == "eval":
            console.say(
                f"step {row['step']:>6,}  {row['tokens'] / 1e6:6.2f} M tokens  "
                f"held-out loss {row['loss']:.3f}  accuracy {row['accuracy']:.1%}"
            )
        else:
            update(
                row["tokens"],
                f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s  "
                f"data wait {row['data_wait']:.1%}  MFU {row['mfu']:.0%}",
            )

    return show


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


def inspect_data(folder: Path, sequence_length: int) -> dict[str, Any]:
    """The manifest of a shard folder, and what packing its training split to a sequence length does."""
    shards = Shards.open(folder)
    pieces = Pieces(shards.lengths, sequence_length)
    budget = 8 * sequence_length
    packed = pack(pieces.lengths, budget, PackState(), longest=sequence_length, stop=len(pieces))
    filled = [pieces.lengths(positions).sum() / budget for positions, _ in itertools.islice(packed, 200)]
    filled = filled[:-1] or filled  # the end of the data is no fault of packing
    cut = pieces.share_cut()
    sentence = (
        f"At {sequence_length:,} tokens {cut['documents']:.1%} of the documents, with {cut['tokens']:.1%} of the tokens, "
        f"are cut into pieces; micro-batches of {budget:,} tokens are {sum(filled) / len(filled):.2%} full."
    )
    return {
        **shards.manifest,
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
    pooling = pooling or pooling_of(model)
    loaded = load(model, device=runtime.device)
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
    pooling = pooling or pooling_of(model)
    loaded = load(model, device=runtime.device)
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
        read = iter_documents(files, text_field=text_field, documents=documents, on_skip=skips.add)
        found = (document.text for document in read)
    elif not texts:
        found = (line.rstrip("\r\n") for line in _without_blank(lines, skips))
    first = next(found, None)
    if first is None:
        raise nothing_read(files or [Path("standard input")], skips)
    return itertools.chain([first], found)


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


def mlm_batches(run: PretrainRun, phase: PhaseSettings, split: Split = "train") -> MlmBatches:
    """The masked, packed batches of a phase; of held-out text at the evaluation's masking rate."""
    return MlmBatches(
        run.data.path,
        split=split,
        sequence_length=phase.sequence_length,
        micro_batch_tokens=phase.micro_batch_tokens,
        mask_rate=run.loop.eval_mask_rate if split == "heldout" else phase.mask_rate,
        seed=run.seed,
    )


def data_fingerprint(shards: Shards) -> str:
    """A hash of all token ids of a shard folder, and of their tokenizer: the same data under any path."""
    manifest = shards.manifest
    hashes = [shard["sha256"] for split in manifest["splits"].values() for shard in split["shards"]]
    return hashlib.sha256("".join([manifest["tokenizer"], *hashes]).encode()).hexdigest()[:16]


def environment(runtime: Runtime) -> dict[str, Any]:
    """Versions, hardware and commit: what a reader of a result wants to know."""
    packages = ("tokenizers", "safetensors", "torch-optimi", "numpy")
    return {
        **runtime.describe(),
        "modernbert": modernbert.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": described_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
