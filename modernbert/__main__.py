"""The command line: a verb, a function, and how its result is shown. No logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modernbert.console import Console, fail
from modernbert.errors import ConfigError, ModernBertError, StoppedError
from modernbert.ranks import leave, need_no_others, speaks

app = typer.Typer(
    help="From raw text to a served ModernBERT encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tokenizer_app = typer.Typer(help="Train a tokenizer, and see how well one fits a text.", no_args_is_help=True)
data_app = typer.Typer(help="Turn text into shards of token ids, and look into them.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")

MAX_SEED = 2**63 - 1
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
TextField = Annotated[str, typer.Option(help="The field of a JSON line, table row or sample that holds the text.")]
Documents = Annotated[Literal["file", "line", "paragraph"], typer.Option(help="What one document is in a plain file.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Shell pattern of files to pass over; may be repeated.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.")]
Precision = Annotated[Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of matrix products.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; PyTorch's choice if not given.")]
Store = Annotated[str, typer.Option(help="The store: a folder, or an address such as s3://bucket/store.")]
Top = Annotated[int, typer.Option(help="How many, at most.")]
Mode = Annotated[Literal["dense", "bm25", "hybrid"], typer.Option(help="By likeness, by words, or by both.")]
Filters = Annotated[
    list[str] | None, typer.Option("--filter", help="key=value that records must have; may be repeated.")
]
Where = Annotated[str, typer.Option(help="A condition in SQL on source, file, heading, content or meta.")]
SearchModel = Annotated[
    str | None, typer.Option(help="Where the model has moved to; the one it was indexed with if not given.")
]
Sources = Annotated[
    list[Path],
    typer.Argument(
        help="Text, Markdown, source code, jsonl, csv, tsv (each also .gz or .zst), parquet, MDS shards, folders of "
        "these, or hf:NAME[:CONFIG]\\[@SPLIT], a Hugging Face dataset."
    ),
]


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint, a run folder or a hub name; this machine if not given.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say what a run would use on this machine, and why; or what a model is, and whether its files agree.

    Exit status 1: the model's files contradict each other.
    """
    if model is not None:
        from modernbert.evaluate import describe

        about = describe.describe(model)
        _show(about, as_json, lambda console: describe.show(about, console))
        raise typer.Exit(1 if about["errors"] else 0)
    from modernbert.doctor import examine, rows
    from modernbert.runtime import Runtime

    found = examine(Runtime.detect(device=device, num_threads=threads))
    _show(found, as_json, lambda console: console.table(["", "what", "value"], rows(found)))


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="A Composer .pt checkpoint, a folder of MDS shards, or a model to make a .pt file of."),
    ],
    out: Annotated[Path, typer.Option(help="The model or shard folder, or the .pt file, to write.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Its folder or hub name; the one in the checkpoint if not given.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The trainer's YAML or JSON; wins over the checkpoint.")] = None,
    global_rope_theta: Annotated[float | None, typer.Option(help="RoPE base of global layers; wins over all.")] = None,
    local_rope_theta: Annotated[float | None, typer.Option(help="RoPE base of local layers; wins over all.")] = None,
    max_positions: Annotated[int | None, typer.Option(help="Positions that the model was trained for.")] = None,
    column: Annotated[str | None, typer.Option(help="Of shards: the column of ids; input_ids or tokens.")] = None,
    heldout: Annotated[
        float | None, typer.Option(help="Of shards: share of documents kept for evaluation; 0.01 if not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Of shards: draws another held-out split.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn what the reference trainer wrote into what this package reads: checkpoints, and shards of token ids."""
    from modernbert.convert import import_any, sentence

    console = Console(quiet=as_json)
    with console.progress("importing") as update:
        result = import_any(
            source, out, tokenizer=tokenizer, settings=config, column=column, heldout=heldout, seed=seed,
            progress=lambda samples, tokens: update(samples, f"samples  {tokens:,} tokens"),
            global_rope_theta=global_rope_theta, local_rope_theta=local_rope_theta, max_position_embeddings=max_positions,
        )  # fmt: skip
    for remark in result["remarks"]:
        console.remark(remark)
    _show(result, as_json, lambda console: console.say(sentence(result)))


@tokenizer_app.command("train")
def tokenizer_train(
    files: Sources,
    vocab_size: Annotated[int, typer.Option(help="Entries in all; a multiple of 64.")],
    out: Out,
    prefix_space: Annotated[bool, typer.Option(help="Treat a text's first word as if after a space.")] = True,
    sample_megabytes: Annotated[int, typer.Option(min=1, help="Text to learn from, at most.")] = 64,
    text_field: TextField = "text",
    documents: Documents = "file",
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Draws another sample of a larger corpus.")] = 0,
    as_json: Json = False,
) -> None:
    """Learn a byte-level BPE tokenizer the ModernBERT way: nothing is unknown, case and accents are kept."""
    from modernbert.runs import learn_tokenizer

    report = learn_tokenizer(
        files, vocab_size=vocab_size, out=out, prefix_space=prefix_space, sample_bytes=sample_megabytes * 10**6,
        text_field=text_field, documents=documents, exclude=exclude or (), seed=seed, console=Console(quiet=as_json),
    )  # fmt: skip
    _show_tokenizer_report(report, as_json)


@tokenizer_app.command("report")
def tokenizer_report(
    tokenizer: Annotated[str, typer.Argument(help="A tokenizer's folder or hub name.")],
    files: Sources,
    against: Annotated[str | None, typer.Option(help="Another tokenizer's folder or hub name.")] = None,
    text_field: TextField = "text",
    documents: Documents = "file",
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Measure a tokenizer on a text: fertility, bytes and characters a token, unknowns, split words."""
    from modernbert.runs import compare_tokenizers

    report = compare_tokenizers(
        tokenizer, files, against=against, text_field=text_field, documents=documents, exclude=exclude or ()
    )
    _show_tokenizer_report(report, as_json)


@data_app.command("build")
def data_build(
    sources: Sources,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's folder or hub name.")],
    out: Out,
    heldout: Annotated[float, typer.Option(help="Share of the documents kept apart for evaluation.")] = 0.01,
    min_tokens: Annotated[int, typer.Option(help="Shorter documents are left out.")] = 8,
    text_field: TextField = "text",
    documents: Documents = "file",
    exclude: Exclude = None,
    score_field: Annotated[str | None, typer.Option(help="The field of a number to keep with each document.")] = None,
    near_duplicates: Annotated[
        float | None,
        typer.Option(help="Leave out documents this alike to one before (0.8 is usual); off if not given."),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Keep documents in this language, such as en; may be repeated.")
    ] = None,
    language_confidence: Annotated[float, typer.Option(help="How sure of that, 0 to 1.")] = 0.5,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(help="Evaluation files; documents with a long stretch of them go; may be repeated."),
    ] = None,
    decontaminate_field: Annotated[
        list[str] | None, typer.Option(help="A field of text in them; --text-field if not given; may be repeated.")
    ] = None,
    decontaminate_words: Annotated[int, typer.Option(help="Words in a row that make a copy.")] = 13,
    workers: Annotated[int, typer.Option(help="Processes; 1 works in this one, with the tokenizer's threads.")] = 1,
    memory: Annotated[
        int,
        typer.Option(help="Megabytes to take beside Python, its libraries, the tokenizer and workers (90 MB each)."),
    ] = 512,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Draws another held-out split.")] = 0,
    as_json: Json = False,
) -> None:
    """Tokenise text into a folder of shards. A build that was cut off goes on where it stopped."""
    from modernbert.runs import build_data
    from modernbert.text import Filters

    filters = Filters(
        near_duplicates=near_duplicates, languages=language or (), language_confidence=language_confidence,
        decontaminate=decontaminate or (), decontaminate_fields=decontaminate_field or (text_field,),
        decontaminate_words=decontaminate_words,
    )  # fmt: skip
    manifest = build_data(
        sources, tokenizer, out, heldout=heldout, min_tokens=min_tokens, text_field=text_field, documents=documents,
        score_field=score_field, exclude=exclude or (), filters=filters, seed=seed, num_workers=workers,
        memory_bytes=memory * 2**20, console=Console(quiet=as_json),
    )  # fmt: skip
    _show_manifest(manifest, as_json)


@data_app.command("inspect")
def data_inspect(
    shards: Annotated[str, typer.Argument(help="A folder made by `modernbert data build`, or its s3:// address.")],
    sequence_length: Annotated[int, typer.Option(help="Also say what packing to this length does.")] = 1024,
    as_json: Json = False,
) -> None:
    """Say what a folder of shards holds: documents, tokens, lengths, what was left out, how it packs."""
    from modernbert.runs import inspect_data

    manifest = inspect_data(shards, sequence_length)
    _show_manifest(manifest, as_json)


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or TOML file; see `modernbert recipes`.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, such as data.path=SHARDS; scale_to=TOKENS shrinks a published recipe."),
    ] = None,
    out: Annotated[
        str,
        typer.Option(help="The run's folder, or an address such as s3://bucket/run; an unfinished run in it goes on."),
    ] = "run",
    dry_run: Annotated[bool, typer.Option(help="Two steps of each phase, what full ones will take, and stop.")] = False,
    allow_change: Annotated[bool, typer.Option(help="Go on although the recipe has been edited.")] = False,
    time_limit: Annotated[float | None, typer.Option(min=0, help="Minutes; then a checkpoint, and status 75.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Pretrain an encoder by masked language modelling. The same command goes on after an interruption.

    SIGTERM, SIGUSR1, Ctrl-C and --time-limit end it behind a checkpoint, with exit status 75: give the command again.
    On many processes: torchrun --nproc-per-node 4 -m modernbert pretrain …, on as many as there are each time.
    """
    from modernbert import pretraining

    console = Console(quiet=as_json, silent=not speaks())
    where: dict[str, Any] = {"device": device, "num_threads": threads, "precision": precision, "console": console}
    if dry_run:
        tried = pretraining.dry_run_recipe(recipe, settings or [], **where)
        _show(tried, as_json, lambda console: pretraining.show_dry_run(tried, console))
        return
    result = pretraining.pretrain_recipe(
        recipe, settings or [], out, allow_change=allow_change, time_limit_minutes=time_limit, **where
    )
    if speaks():
        _show(result, as_json, lambda console: console.say(
            f"{result['checkpoint']}: held-out loss {result['loss']:.3f}, accuracy {result['accuracy']:.1%}"
        ))  # fmt: skip


@app.command("report")
def run_report(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")],
    out: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("report.html"),
    against: Annotated[list[Path] | None, typer.Option(help="Another run to overlay; may be repeated.")] = None,
    reference: Annotated[
        str, typer.Option(help="A reference curve's name or .json file; auto: the one that fits; or none.")
    ] = "auto",
    save_reference: Annotated[
        Path | None, typer.Option(help="Write no page but the .json reference curve of this finished run.")
    ] = None,
    note: Annotated[str, typer.Option(help="What readers of that curve should know.")] = "",
    as_json: Json = False,
) -> None:
    """Write a run's report: one page with its losses, pace, checkpoints and events, beside a reference curve."""
    from modernbert.evaluate.curves import save_curve
    from modernbert.evaluate.run_page import write_page
    from modernbert.evaluate.run_report import report, sentences

    if save_reference is not None:
        curve = save_curve(run, save_reference, note)
        _show(curve, as_json, lambda console: console.say(f"{save_reference}: {len(curve['rows'])} points"))
        return
    found = report(run, against or (), reference)
    found["page"] = str(write_page(found, out))
    _show(found, as_json, lambda console: [console.say(line) for line in [*sentences(found), f"written: {out}"]])


@app.command()
def plan(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name or file; without one, shapes are given.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value; data.path need not be given.")] = None,
    params: Annotated[int | None, typer.Option(help="Instead: shapes of so many parameters.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Instead: shapes that encode a batch in so long.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Of that batch; 65,536 on a GPU, 1,024 on a CPU.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Of such shapes; the published one's if not given.")] = None,
    device: Annotated[
        str, typer.Option(help="h100, a100-80, l4, rtx4090, …: by the data sheet. here, cpu, cuda: measured.")
    ] = "here",
    count: Annotated[int | None, typer.Option(help="Devices that share each step; one if not given.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a device for an hour.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say what a recipe takes on some hardware: steps, epochs, hours, memory, money. Or which shapes fill it best."""
    console = Console(quiet=as_json)
    if recipe is None:
        from modernbert.evaluate.shapes import plan_shapes, show_shapes

        _refuse_idle("planning a shape", settings=settings, count=count, price=price)
        shapes = plan_shapes(params=params, latency_ms=latency_ms, num_tokens=tokens, vocab_size=vocab_size,
                             device=device, num_threads=threads, console=console)  # fmt: skip
        _show(shapes, as_json, lambda console: show_shapes(shapes, console))
        return
    if params is not None or latency_ms is not None:
        raise ConfigError(f"--params and --latency-ms ask for a shape, and {recipe} has one; give one or the other")
    from modernbert.planning import plan_recipe, show_plan

    _refuse_idle("planning a recipe", tokens=tokens, vocab_size=vocab_size)
    found = plan_recipe(recipe, settings or [], device=device, count=1 if count is None else count, price=price,
                        num_threads=threads, console=console)  # fmt: skip
    _show(found, as_json, lambda console: show_plan(found, console))


@app.command("recipes")
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with the package."""
    from modernbert.settings import recipe_names

    _show({"recipes": recipe_names()}, as_json, lambda console: [console.say(name) for name in recipe_names()])


@app.command("fill-mask")
def fill_mask(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run folder (its newest checkpoint), or a hub name.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts with [MASK]; read line by line if none.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Answers for each mask.")] = 5,
    joint: Annotated[bool, typer.Option(help="Answer masks that stand side by side together.")] = False,
    device: Device = "auto",
    ignore_unexpected: Annotated[bool, typer.Option(help="Leave out tensors the architecture does not have.")] = False,
    as_json: Json = False,
) -> None:
    """Answer each [MASK] in a text from the text around it."""
    from modernbert.runs import answer_masks

    console = Console(quiet=as_json)
    if not texts and sys.stdin.isatty():
        console.remark("reading texts from the keyboard, one a line; Ctrl-D ends")
    for answer in answer_masks(
        model, texts or (line.rstrip("\n") for line in sys.stdin), top_k=top_k, joint=joint, device=device,
        ignore_unexpected=ignore_unexpected,
    ):  # fmt: skip
        if as_json:
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
            continue
        for number, predictions in enumerate(answer["masks"], start=1):
            shares = [p["probability"] for p in predictions]
            digits = 1 if min(shares, default=1) >= 0.001 else 4  # a run of masks has small ones
            rows = [[p["text"], f"{p['probability']:.{digits}%}", p["filled"]] for p in predictions]
            if not rows:
                console.remark(f"mask {number}: no token is a whole answer here; try --joint, or fewer or more masks")
                continue
            console.table([f"mask {number}", "probability", "text"], rows)


@app.command()
def encode(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run folder (its newest checkpoint), or a hub name.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; without, and without --from, lines are read.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--from", help="A file, a folder or hf:NAME, as `data build` takes them; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The .npy or .parquet file to write; an unfinished one goes on.")
    ] = None,
    pooling: Annotated[
        Literal["auto", "mean", "cls"], typer.Option(help="auto: what a sentence-transformers folder says, else mean.")
    ] = "auto",
    normalize: Annotated[bool, typer.Option(help="Vectors of length one.")] = True,
    truncate_dim: Annotated[
        int | None, typer.Option(help="Keep the first so many dimensions; all if not given.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Cut texts to so many tokens; what the model takes if not given.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Of a sentence-transformers folder, the prompt before each text: query, document, …."),
    ] = None,
    tokens_per_batch: Annotated[int, typer.Option(help="Tokens computed at once; fewer take less memory.")] = 16_384,
    text_field: TextField = "text",
    documents: Documents = "line",
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Turn texts into vectors: a JSON line each, or a file. The same command goes on after an interruption."""
    from modernbert.runs import encode_to_file, encode_to_lines, given_texts
    from modernbert.runtime import Runtime
    from modernbert.text import Skips

    console, skips = Console(quiet=as_json), Skips()
    if not texts and not files and sys.stdin.isatty():
        console.remark("reading texts from the keyboard, one a line; Ctrl-D ends")
    runtime = Runtime.detect(device=device, num_threads=threads, precision=precision)
    given = given_texts(texts or [], files or [], sys.stdin, text_field=text_field, documents=documents, skips=skips)
    how: dict[str, Any] = {
        "pooling": None if pooling == "auto" else pooling, "normalize": normalize, "truncate_dim": truncate_dim,
        "max_length": max_length, "prompt": prompt, "tokens_per_batch": tokens_per_batch,
    }  # fmt: skip
    if out is None:
        for line in encode_to_lines(model, given, runtime=runtime, **how):
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
    else:
        result = encode_to_file(model, given, out, runtime=runtime, console=console, **how)
        _show(result, as_json, lambda console: console.say(
            f"{result['path']}: {result['texts']:,} texts, {result['dimensions']:,} dimensions, "
            f"{result['texts_per_second']:,.0f} texts/s, {result['tokens_per_second']:,.0f} tokens/s"
        ))  # fmt: skip
    if skips.counts:
        console.remark(f"left out: {skips}")


@app.command()
def finetune(
    kind: Annotated[
        Literal["classify", "pair", "tag", "answer", "embed", "several"],
        typer.Argument(
            help="Classes or a number for texts or for pairs, entities, answers in passages, vectors to search with; or "
            "several at once."
        ),
    ],
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint, a run folder, a hub name; of embed with --teacher a shape, too"),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Any other setting: head_dropout=0, optim.layer_decay=0.9, ….")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="jsonl, csv, tsv, parquet, CoNLL, SQuAD json, or a dataset: hf:NAME[:CONFIG]\\[@SPLIT]."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="By which the best weights are chosen; a tenth of the others if not given.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Scored once, at the end.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Of embed: an embedder to learn the vectors of, for texts without labels.")
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="Of several: a TOML file with a \\[\\[tasks]] table for each.")
    ] = None,
    out: Out = Path("finetuned"),
    text_column: Annotated[str | None, typer.Option(help="Column names are guessed, and said, if not given.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="The second text of a pair.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The label.")] = None,
    words_column: Annotated[str | None, typer.Option(help="The words to tag.")] = None,
    tags_column: Annotated[str | None, typer.Option(help="Their tags.")] = None,
    question_column: Annotated[str | None, typer.Option(help="The question.")] = None,
    context_column: Annotated[str | None, typer.Option(help="The passage that answers it.")] = None,
    answers_column: Annotated[str | None, typer.Option(help="The right answers.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Times through the examples; 3 to 10 if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a step; 16 if not given.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; by the model's width if not given.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Cut texts to so many tokens; all that the model takes if not given.")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens that windows of a long text share.")] = None,
    metric: Annotated[str | None, typer.Option(help="By which the best weights are chosen.")] = None,
    patience: Annotated[int | None, typer.Option(help="End behind so many evaluations without a better one.")] = None,
    class_weights: Annotated[Literal["balanced"] | None, typer.Option(help="Weigh rare classes more.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of each target given to all classes.")] = None,
    layer_decay: Annotated[float | None, typer.Option(help="Rate of each layer, of that of the one above it.")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Train the head alone.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Of order, head and dropout; 0 if not given.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Teach a pretrained encoder a task: a folder that transformers opens, its scores, a confusion matrix, a card.

    The same command goes on after an interruption. Under torchrun all processes train together (of embed, one does). What
    embed takes if nothing is given: one epoch, 64 rows a step, 256 tokens of a text.
    """
    from modernbert.finetune_files import finetune_files, show_result

    columns = {
        "text": text_column, "pair": pair_column, "label": label_column, "words": words_column, "tags": tags_column,
        "question": question_column, "context": context_column, "answers": answers_column,
    }  # fmt: skip
    task = {
        "train": train, "validation": validation, "test": test, "max_length": max_length, "stride": stride,
        "metric": metric, "class_weights": class_weights, "label_smoothing": label_smoothing,
    }  # fmt: skip
    run = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "patience": patience, "freeze": freeze or None, "seed": seed,
    }  # fmt: skip
    given = [*(settings or ()), *([f"optim.layer_decay={layer_decay}"] if layer_decay is not None else [])]
    if kind == "embed":
        from modernbert.embedding import embed_files, show_embedder

        need_no_others("modernbert finetune embed")
        used = ("train", "validation", "test", "max_length")
        others = {f"{name}_column": value for name, value in columns.items()} | {
            k: v for k, v in task.items() if k not in used
        }
        _refuse_idle(
            "embed", test=test, tasks=tasks, patience=patience, freeze=freeze or None,
            precision=None if precision == "auto" else precision, **others,
        )  # fmt: skip
        of_embed = {
            "train": train, "validation": validation, "teacher": teacher, "max_length": max_length, "epochs": epochs,
            "batch_size": batch_size, "lr": lr, "seed": seed,
        }  # fmt: skip
        result = embed_files(
            model, out, run=of_embed, settings=given, device=device, num_threads=threads, console=Console(quiet=as_json)
        )
        _show(result, as_json, lambda console: show_embedder(result, out, console))
        return
    _refuse_idle(kind, teacher=teacher)
    result = finetune_files(
        kind, model, out, tasks=tasks, task=task, columns=columns, run=run, settings=given, device=device,
        num_threads=threads, precision=precision, console=Console(quiet=as_json, silent=not speaks()),
    )  # fmt: skip
    if speaks():
        _show(result, as_json, lambda console: show_result(result, out, console))


@app.command()
def index(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files and folders of text, Markdown and code; jsonl, csv, tsv, parquet of records."),
    ],
    model: Annotated[
        str, typer.Option(help="The embedder, such as `finetune embed` makes: a folder, a run folder or a hub name.")
    ],
    store: Store = "store",
    max_tokens: Annotated[
        int | None, typer.Option(help="Of a passage; 256, or what the model takes, if not given.")
    ] = None,
    truncate_dim: Annotated[
        int | None, typer.Option(help="Keep the first so many dimensions; all if not given.")
    ] = None,
    text_field: TextField = "text",
    exclude: Exclude = None,
    max_megabytes: Annotated[float, typer.Option(help="Larger files of text are left out, and said.")] = 20.0,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Make passages of files and put them, with their vectors, into a store to search in.

    Only what is new or changed is encoded, and what is gone is taken out: give the same command again at any time, also
    behind a kill. Code is cut into functions, prose into sections and paragraphs.
    """
    from modernbert.runtime import Runtime
    from modernbert.searching import index_files, sentence

    runtime = Runtime.detect(device=device, num_threads=threads, precision=precision)
    result = index_files(
        sources, model, store, max_tokens=max_tokens, dimensions=truncate_dim, text_field=text_field, exclude=exclude or (),
        max_megabytes=max_megabytes, runtime=runtime, console=Console(quiet=as_json),
    )  # fmt: skip
    _show(result, as_json, lambda console: console.say(sentence(result)))


@app.command()
def search(
    store: Annotated[str, typer.Argument(help="A store that `index` made: a folder, or an address such as s3://….")],
    query: Annotated[str | None, typer.Argument(help="Words or a question.")] = None,
    like: Annotated[
        str | None, typer.Option(help="Instead: a file or a text; the sources most like it, itself left out.")
    ] = None,
    top: Top = 10,
    mode: Annotated[
        Literal["dense", "bm25", "hybrid"] | None,
        typer.Option(help="By likeness, by words, or by both; both if not given."),
    ] = None,
    filters: Filters = None,
    where: Where = "",
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector, also of a large store.")] = False,
    model: SearchModel = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line a hit.")] = False,
) -> None:
    """Find passages in a store: by likeness of vectors, by words (BM25), or both fused by their ranks."""
    from modernbert.runtime import Runtime
    from modernbert.searching import hit_rows, search_store

    hits = search_store(
        store, query, like=like, model=model, top=top, mode=mode, filters=filters or (), where=where, exact=exact,
        runtime=Runtime.detect(device=device, num_threads=threads),
    )  # fmt: skip
    if as_json:
        for hit in hits:
            sys.stdout.write(json.dumps(hit.to_dict(), ensure_ascii=False) + "\n")
        return
    console = Console()
    if hits:
        console.table(*hit_rows(hits))
    else:
        console.remark("nothing found")


@app.command()
def ask(
    store: Annotated[str, typer.Argument(help="A store that `index` made: a folder, or an address such as s3://….")],
    question: Annotated[str, typer.Argument(help="The question.")],
    reader: Annotated[str, typer.Option(help="What answers from a passage: a folder of `finetune answer`.")],
    top: Top = 10,
    mode: Mode = "hybrid",
    filters: Filters = None,
    where: Where = "",
    model: SearchModel = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Answer a question from a store: search, then a part of a passage with its source and place, or no answer."""
    from modernbert.runtime import Runtime
    from modernbert.searching import ask_store

    found = ask_store(
        store, question, reader, model=model, top=top, mode=mode, filters=filters or (), where=where,
        runtime=Runtime.detect(device=device, num_threads=threads),
    )  # fmt: skip

    def show(console: Console) -> None:
        if found["answer"] is None:
            console.say("no answer")
            return
        console.say(found["answer"])
        console.remark(f"{found['source']}:{found['start']}-{found['end']}, {found['score']:.0%}")

    _show(found, as_json, show)


@app.command()
def predict(
    folder: Annotated[str, typer.Argument(help="A fine-tuned folder, an address or a hub name.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="The texts; of pairs and questions two by two. Lines of standard input if not given."),
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="jsonl, csv, tsv, parquet, CoNLL, SQuAD json or txt; may be repeated.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column names are guessed if not given.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="The second text of a pair.")] = None,
    words_column: Annotated[str | None, typer.Option(help="The words to tag.")] = None,
    question_column: Annotated[str | None, typer.Option(help="The question.")] = None,
    context_column: Annotated[str | None, typer.Option(help="The passage.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
) -> None:
    """Answer with a fine-tuned model: a JSON line for each text, in their order, as they come."""
    from modernbert.predicting import given_items, load_head, predict_lines
    from modernbert.runtime import Runtime
    from modernbert.text.labelled import Columns

    runtime = Runtime.detect(device=device, num_threads=threads, precision=precision)
    columns = Columns(
        text=text_column, pair=pair_column, words=words_column, question=question_column, context=context_column
    )
    if not texts and not file and sys.stdin.isatty():
        Console().remark("reading texts from the keyboard, one a line; Ctrl-D ends")
    model = load_head(folder, runtime)
    items = given_items(model, texts or [], file or [], sys.stdin, columns)
    for answer in predict_lines(model, items, runtime, as_they_come=not texts and not file):
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A folder, a run folder, an address or a hub name of any encoder; or bag-of-words.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Of suites that fine-tune, any setting of `finetune`: head_dropout=0, ….")
    ] = None,
    suite: Annotated[
        Literal["probe", "glue", "classify", "ner", "qa", "zh", "mlm", "similarity", "retrieval", "code", "long"],
        typer.Option(
            help="probe: frozen vectors. mlm: masked loss. similarity: cosines beside STS-B's scores. retrieval, code, long: "
            "BEIR folders, beside BM25. The others fine-tune."
        ),
    ] = "probe",
    data: Annotated[Path, typer.Option(help="The folder that holds the data sets.")] = Path("data"),
    tasks: Annotated[str | None, typer.Option(help="Some of the suite's tasks, with commas; all if not given.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many; 5, of mlm 3, if not given.")] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="Learning rates to choose among on validation, with commas; by width if not given."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Times through the examples; 3 to 10 if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a step; 16 if not given.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a text; 512, of probe 256, if not given.")] = None,
    max_examples: Annotated[
        int | None, typer.Option(help="Training examples, drawn by each seed; all if not given.")
    ] = None,
    max_test: Annotated[int | None, typer.Option(help="Test examples, the first; all if not given.")] = None,
    out: Annotated[Path, typer.Option(help="The file of scores, to which a line each is added.")] = Path(
        "scores.jsonl"
    ),
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line a score, as they come.")] = False,
) -> None:
    """Score an encoder on data sets: mean and spread over seeds, the protocol with each score. The same command goes on."""
    from modernbert.evaluate.compare import compare as side_by_side
    from modernbert.evaluate.compare import show
    from modernbert.suites import evaluate_lines

    given: dict[str, Any] = {
        "seeds": None if seeds is None else tuple(range(seeds)), "rates": None if lr is None else _numbers("--lr", lr),
        "epochs": epochs, "batch_size": batch_size, "max_length": max_length, "max_examples": max_examples,
        "max_test": max_test, "settings": tuple(settings) if settings else None,
    }  # fmt: skip
    console, found = Console(quiet=as_json), []
    for score in evaluate_lines(
        model, suite, data, out, given=given, tasks=_names(tasks or ""), device=device, num_threads=threads,
        precision=precision, console=console,
    ):  # fmt: skip
        found.append(score)
        if as_json:
            sys.stdout.write(score.to_line() + "\n")
            sys.stdout.flush()
    if not as_json:
        show(side_by_side([found]), console)
        console.remark(f"written: {out}; put several models side by side with `modernbert compare {out}`")


@app.command()
def compare(
    scores: Annotated[
        list[Path],
        typer.Argument(help="Files of scores that `modernbert evaluate` wrote, or folders with a scores.jsonl."),
    ],
    plot: Annotated[Path, typer.Option(help="The picture to write.")] = Path("compare.png"),
    as_json: Json = False,
) -> None:
    """Put models side by side: mean ± sd, the best one, differences with their 95 % intervals, and a plot."""
    import dataclasses

    from modernbert.evaluate import compare as comparing

    files = [path / "scores.jsonl" if path.is_dir() else path for path in scores]
    comparison = comparing.compare(files)
    comparing.plot(comparison, plot)

    def show(console: Console) -> None:
        comparing.show(comparison, console)
        console.remark(f"written: {plot}")

    _show(dataclasses.asdict(comparison) if as_json else comparison, as_json, show)


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="tiny, mini, small, base, large, huge, a folder, or a hub name.")] = "base",
    loads: Annotated[str | None, typer.Option(help="Some of the loads, with commas; all of them.")] = None,
    against: Annotated[
        str, typer.Option(help="Among transformers, bert, deberta, accelerated, with commas; '' for none.")
    ] = "transformers,bert,deberta",
    device: Device = "auto",
    threads: Threads = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of weights and products.")
    ] = "auto",
    seconds: Annotated[float, typer.Option(min=0, help="For each load; three rounds at least.")] = 20.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="For each load, instead of seconds.")] = None,
    memory: Annotated[bool, typer.Option(help="Peak memory too, each model in a process of its own.")] = True,
    malloc: Annotated[bool, typer.Option(help="Have glibc keep freed memory, for all alike.")] = False,
    quick: Annotated[bool, typer.Option(help="Narrow models, short texts: does it run here?")] = False,
    out: Out = Path("bench"),
    as_json: Json = False,
) -> None:
    """Measure how fast this encodes, side by side with other encoders and with this machine's best matrix products."""
    from modernbert.evaluate import report
    from modernbert.evaluate.loads import LOADS
    from modernbert.evaluate.speed import Bench
    from modernbert.evaluate.speed import bench as measure
    from modernbert.runtime import Runtime

    console = Console(quiet=as_json)
    settings = Bench(
        model=model, loads=_names(loads) if loads is not None else LOADS, against=_names(against), seconds=seconds,
        rounds=rounds, memory=memory, quick=quick, malloc=malloc,
    )  # fmt: skip
    runtime = Runtime.detect(device=device, precision=dtype, num_threads=threads)
    report.prepare(out, quick=quick)
    record = measure(settings, runtime, console.remark, lambda record: report.write_unfinished(record, out))
    files = report.write(record, out)

    def show(console: Console) -> None:
        for table in report.tables(record):
            console.heading(table.title)
            console.table(table.columns, table.rows)
        for line in [*report.remarks(record), report.headline(record), f"written: {', '.join(map(str, files))}"]:
            console.remark(line)

    _show(record, as_json, show)


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")],
    repo: Annotated[str, typer.Argument(help="The repository on the hub, owner/name; made where it is not there.")],
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="A checkpoint's name; may be repeated. Phase ends and the newest if not given."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All checkpoints that are there.")] = False,
    main: Annotated[
        str | None, typer.Option(help="The checkpoint for main; the newest published if not given.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--licence", "--license", help="Of the model: apache-2.0, mit, other, …; --yes needs it."),
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Of the text, such as en; may be repeated.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository for its owner alone.")] = False,
    with_state: Annotated[
        bool,
        typer.Option("--with-state", help="The optimizer too: three times the bytes, and others can go on exactly."),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Commit over other models, and cards edited by hand, that are there.")
    ] = False,
    card: Annotated[Path, typer.Option(help="Where to write the model card for looking at.")] = Path("model-card.md"),
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it, nothing is sent.")] = False,
    as_json: Json = False,
) -> None:
    """Upload checkpoints to the hub: a revision each, named by phase and tokens, with a model card. First a dry run.

    The same command goes on after an interruption, and adds what the run has saved since.
    """
    from modernbert import publishing

    result = publishing.publish(
        run, repo, checkpoints=checkpoint or (), every=every, main=main, licence=licence, languages=language or (),
        private=private, with_state=with_state, replace=replace, yes=yes, card=card, console=Console(quiet=as_json),
    )  # fmt: skip
    _show(result, as_json, lambda console: publishing.show(result, console))


@app.command()
def quickstart(
    minutes: Annotated[float, typer.Option(min=0.5, help="Time for all of it, after the install.")] = 5.0,
    out: Annotated[Path, typer.Option(help="The folder to write; an unfinished quickstart in it goes on.")] = Path(
        "quickstart"
    ),
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Live the whole life of an encoder in miniature, on this Python's own source code and documentation."""
    from modernbert.quickstart import quickstart as live
    from modernbert.runtime import Runtime

    result = live(out, minutes, Runtime.detect(num_threads=threads), Console(quiet=as_json))
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


UNFINISHED = 75  # sysexits' EX_TEMPFAIL: try again


def main() -> None:
    """Run a command; a refusal is one line and exit status 2."""
    try:
        if sys.argv[1:2] not in (["pretrain"], ["finetune"]):
            need_no_others(f"modernbert {' '.join(sys.argv[1:2])}")
        app(standalone_mode=True)
    except ModernBertError as error:
        if not error.said_elsewhere:
            fail(str(error))
        leave(UNFINISHED if isinstance(error, StoppedError) else 2, error)
    except SystemExit as ended:
        if ended.code == 130:  # the keyboard, as typer reports it
            fail("interrupted; what was done so far is kept, and what can go on does when the command is given again")
        raise


def _names(with_commas: str) -> list[str]:
    return [name.strip() for name in with_commas.split(",") if name.strip()]


def _numbers(option: str, with_commas: str) -> tuple[float, ...]:
    try:
        return tuple(float(name) for name in _names(with_commas))
    except ValueError as error:
        raise ConfigError(f"{option} {with_commas}: not numbers with commas between; write 1e-4,3e-4") from error


def _refuse_idle(what: str, **given: object) -> None:
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: of no use for {what}; leave it out")


def _show(result: Any, as_json: bool, show: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False, default=str) + "\n")
    else:
        show(Console())


def _show_manifest(manifest: dict[str, Any], as_json: bool) -> None:
    from modernbert.text import summarize

    def show(console: Console) -> None:
        console.say(summarize(manifest))
        if "packing" in manifest:
            console.say("\n" + manifest["packing"]["sentence"])

    _show(manifest, as_json, show)


def _show_tokenizer_report(report: dict[str, Any], as_json: bool) -> None:
    from modernbert.text import format_report

    _show(report, as_json, lambda console: console.say(format_report(report)))


if __name__ == "__main__":
    main()
