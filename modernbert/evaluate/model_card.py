"""What a run's report and `doctor` say → the README.md of its model on the hub: YAML for the hub, Markdown for people.

Nothing is in a card that the run does not record or its publisher does not say, neither dates of publication nor paths:
the same run gives the same card. Price: that of `run_report.report`, once for all cards of a run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jinja2
import tomli_w
from huggingface_hub import ModelCardData

from modernbert.evaluate.chart import duration, number, percent, quantity
from modernbert.evaluate.curves import devices
from modernbert.evaluate.run_figures import source_names
from modernbert.settings import without_none

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
VERSIONS = ("modernbert", "torch", "tokenizers", "safetensors", "torch-optimi", "numpy", "python")


class Source(NamedTuple):
    """A source of text: how it is called in the recipe, and what its shards say; None where they are not to be had."""

    name: str
    fingerprint: str | None
    manifest: dict[str, Any] | None


class Published(NamedTuple):
    """A checkpoint and its revision on the hub."""

    checkpoint: str
    revision: str
    phase: str
    step: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Story:
    """All that cards of one run are made of.

    Attributes:
        repo: owner/name.
        found: of `run_report.report`.
        about: of `describe.describe`, by checkpoint.
        recipe: of run.json, without paths of the machine.
        sources: of its text.
        revisions: all that are published, oldest first.
        mask: how the tokenizer spells a mask.
        licence, languages: as their publisher says; None and empty where nothing was said.
        has_curve: whether loss.png lies beside the card.
        with_state: whether optimizers are published too.
    """

    repo: str
    found: dict[str, Any]
    about: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    sources: Sequence[Source]
    revisions: Sequence[Published]
    mask: str = "[MASK]"
    licence: str | None = None
    languages: Sequence[str] = field(default_factory=tuple)
    has_curve: bool = True
    with_state: bool = False


class Table(NamedTuple):
    """Cells as text; columns whose heading ends in > are numbers, set right."""

    columns: str
    rows: list[list[str]]


def render(story: Story, checkpoint: str, revision: str | None) -> str:
    """The card of a checkpoint.

    Args:
        story: of its run.
        checkpoint: its name.
        revision: the branch it is on; None for `main`.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("modernbert", "evaluate"), autoescape=False, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters["cell"] = cell
    about, own = story.about[checkpoint], next(p for p in story.revisions if p.checkpoint == checkpoint)
    base = base_of(story.recipe)
    return templates.get_template("model_card.md.jinja").render(
        metadata=metadata(story).to_yaml(),
        title=story.repo.partition("/")[2],
        repo=story.repo,
        revision=revision,
        licence=story.licence,
        mask=story.mask,
        parameters=quantity(about["what"]["parameters"]),
        origin=f"trained on from {cell(base)}" if base else "trained from scratch",
        standing=_standing(story, own, revision),
        shape=_shape(about["what"]),
        table=table_in_markdown,
        recipe=_recipe(story.recipe),
        recipe_sentences=_recipe_sentences(story.recipe),
        data=_data(story.sources),
        data_sentences=_data_sentences(story.sources),
        results=_results(story.found),
        results_note=_results_note(story),
        by_source=_by_source(story.found),
        has_curve=story.has_curve,
        hardware=_hardware(story.found),
        command=_command(story.found["environment"]),
        recipe_toml=tomli_w.dumps(without_none(story.recipe)).strip(),
        limitations=_limitations(story, about),
        revisions=_revisions(story),
        revisions_note=_revisions_note(story, about["training"]),
    )


def metadata(story: Story) -> ModelCardData:
    """What the hub reads: of a base model and data sets only those that the hub has by name."""
    base = base_of(story.recipe)
    datasets = sorted({name for source in story.sources for name in _hub_datasets(source)})
    return ModelCardData(
        license=story.licence, language=list(story.languages) or None, library_name="transformers",
        pipeline_tag="fill-mask", tags=["modernbert", "masked-lm", "encoder"], datasets=datasets or None,
        base_model=base if base and HUB_NAME.fullmatch(base) else None,
    )  # fmt: skip


def base_of(recipe: dict[str, Any]) -> str | None:
    """The model whose weights a run began with."""
    return recipe["phases"][0].get("checkpoint") or recipe["model"].get("tile_from")


def _hub_datasets(source: Source) -> list[str]:
    made_of = (source.manifest or {}).get("settings", {}).get("sources") or []
    names = [re.split(r"[:@#]", str(one).removeprefix("hf:"))[0] for one in made_of if str(one).startswith("hf:")]
    return [name for name in names if ("/" not in name or HUB_NAME.fullmatch(name)) and not Path(name).is_dir()]


def cell(value: Any) -> str:
    """Text as it stands in a table or a line of Markdown, whatever is in it."""
    text = " ".join(html.escape(str(value), quote=False).split())
    return re.sub(r"([|`*_\[\]\\])", r"\\\1", text)


def table_in_markdown(table: Table) -> str:
    """A table as Markdown has it."""
    columns = table.columns.split("|")
    lines = [
        " | ".join(name.rstrip(">") for name in columns),
        "|".join("--:" if c.endswith(">") else "---" for c in columns),
    ]
    lines += [" | ".join(map(cell, row)) for row in table.rows]
    return "\n".join(f"| {line} |" if index != 1 else f"|{line}|" for index, line in enumerate(lines))


def _standing(story: Story, own: Published, revision: str | None) -> str:
    head = story.found["headline"]
    where = f"Revision `{revision}`" if revision else "`main`"
    left = story.about[own.checkpoint]["training"].get("share_of_rate_left")
    rate = "" if left is None else (
        " Its learning rate had been decayed." if left < 1 else " Its learning rate had not been decayed: a checkpoint to go "
        "on from."
    )  # fmt: skip
    run = "" if head["status"] == "finished" else (
        f" The run was not finished: {quantity(head['tokens'])} of {quantity(head['total_tokens'])} tokens."
    )  # fmt: skip
    return f"{where} is the checkpoint of phase {own.phase} behind {own.tokens:,} tokens, step {own.step:,}.{rate}{run}"


def _shape(what: dict[str, Any]) -> list[tuple[str, str]]:
    shape = what["shape"]
    layers = what["layers"]
    return [
        ("parameters", f"{what['parameters']:,}"),
        ("shape", f"ModernBERT-{what['preset']}'s" if what["preset"] in ("base", "large") else what["preset"] or "its own"),
        ("layers", f"{shape['num_hidden_layers']}, of which {layers.count('G')} see the whole context and the others "
                   f"{what['window']:,} tokens"),
        ("width", f"{shape['hidden_size']:,}, {shape['num_attention_heads']} heads, {shape['intermediate_size']:,} in the GLU"),
        ("context", f"{what['positions']:,} tokens"),
        ("RoPE bases", f"{what['rope_bases']['global']:,.0f} global, {what['rope_bases']['local']:,.0f} local"),
        ("tokenizer", f"{what['tokenizer_ids']:,} entries" if "tokenizer_ids" in what else "none"),
    ]  # fmt: skip


def _recipe(recipe: dict[str, Any]) -> Table:
    rows = []
    for phase in recipe["phases"]:
        batch = quantity(phase["tokens_per_step"])
        if phase.get("tokens_per_step_start"):
            batch = f"{quantity(phase['tokens_per_step_start'])} → {batch}"
        masked = percent(phase["mask_rate"])
        if phase.get("mask_rate_end") is not None:
            masked = f"{masked} → {percent(phase['mask_rate_end'])}"
        decay = phase.get("decay_tokens")
        rows.append([
            phase["name"], _amount(phase.get("tokens")), number(phase["sequence_length"]), batch, quantity(phase["lr"]),
            _amount(phase.get("warmup_tokens")),
            f"{_amount(decay)}, {phase.get('decay_shape')} to {phase.get('decay_to'):g}" if decay else "none",
            masked, _mixture(phase.get("mixture") or {}),
        ])  # fmt: skip
    return Table("phase|tokens>|length>|batch, tokens>|peak rate>|warm-up>|decay|masked>|text", rows)


def _amount(value: Any) -> str:
    return quantity(value) if isinstance(value, int) and value else "none" if not value else str(value)


def _mixture(mixture: dict[str, Any]) -> str:
    if not mixture:
        return "every source, by its size"
    return ", ".join(
        f"{name} {part.get('weight', part) if isinstance(part, dict) else part}" for name, part in mixture.items()
    )


def _recipe_sentences(recipe: dict[str, Any]) -> list[str]:
    optim = recipe.get("optim") or {}
    sentences = []
    if optim:
        betas = " and ".join(map(str, optim["betas"]))
        sentences.append(
            f"StableAdamW with decoupled weight decay {optim['weight_decay']:g}, betas {betas}, eps {optim['eps']:g}."
        )
    starts = [
        f"Phase {phase['name']} starts from {cell(phase['checkpoint'])} ({phase.get('start', 'state')})."
        for phase in recipe["phases"]
        if phase.get("checkpoint")
    ]
    if recipe["model"].get("tile_from"):
        starts.append(f"Its weights were tiled from {cell(recipe['model']['tile_from'])}.")
    return [*sentences, *starts, f"Seed {recipe.get('seed', 0)}. Sequences are packed without padding."]


def _data(sources: Sequence[Source]) -> Table:
    rows = []
    for source in sources:
        manifest = source.manifest or {}
        splits = manifest.get("splits") or {}
        train, heldout = splits.get("train") or {}, splits.get("heldout") or {}
        made_of = [file_name(one) for one in (manifest.get("settings") or {}).get("sources") or []]
        rows.append([
            source.name, number(train.get("documents")), quantity(train["tokens"]) if train else "–",
            quantity(heldout["tokens"]) if heldout else "–", ", ".join(made_of) or "–", source.fingerprint or "–",
        ])  # fmt: skip
    return Table("source|documents>|tokens>|held-out tokens>|made of|fingerprint", rows)


def file_name(path: Any) -> str:
    """Of a file's or folder's path its last part, also behind `hf:`; a data set of the hub as it is."""
    text = str(path)
    address = text.removeprefix("hf:")
    name = re.split(r"[:@#]", address)[0]
    is_hub = text != address and ("/" not in name or HUB_NAME.fullmatch(name)) and not Path(name).is_dir()
    return text if is_hub else PurePath(address).name


def _data_sentences(sources: Sequence[Source]) -> list[str]:
    sentences = []
    for source in sources:
        if source.manifest is None:
            sentences.append(f"{cell(source.name)}: its shards were not at hand when this was written.")
            continue
        settings = source.manifest.get("settings") or {}
        done = []
        if "near_duplicates" in settings:
            done.append(f"near-duplicates from a likeness of {settings['near_duplicates']} on left out")
        if "language" in settings:
            done.append(f"only documents in {', '.join(settings['language'])}")
        if "decontaminate" in settings:
            names = ", ".join(map(file_name, settings["decontaminate"]))
            done.append(f"documents that share {settings['decontaminate_words']} words in a row with {names} left out")
        skipped = [f"{entry['count']:,} {reason}" for reason, entry in (source.manifest.get("skipped") or {}).items()]
        done += [f"left out in all: {', '.join(skipped)}"] if skipped else []
        if done:
            sentences.append(cell(f"{source.name}: {'; '.join(done)}."))
    return sentences


def _results(found: dict[str, Any]) -> Table:
    rows = []
    last = {row.get("phase"): row for row in found["evaluations"]}
    for phase in found["phases"]:
        row = last.get(phase["name"])
        rows.append([
            phase["name"], f"{quantity(phase['done'])} of {quantity(phase['tokens'])}", number(phase["loss_last"], ".3f"),
            number(phase["heldout_last"], ".3f"), percent(row["accuracy"]) if row and row.get("accuracy") is not None else "–",
            quantity(row["tokens"]) if row else "–",
        ])  # fmt: skip
    return Table("phase|tokens>|training loss>|held-out loss>|held-out accuracy>|measured at>", rows)


def _results_note(story: Story) -> str:
    rate = (story.recipe.get("loop") or {}).get("eval_mask_rate")
    return (
        "Loss in nats and accuracy at masked tokens. Training loss is the mean over the last 1% of the run, with dropout and at "
        f"the phase's masking rate; held-out text is of the same sources, masked at {percent(rate) if rate else 'its own rate'}."
    )


def _by_source(found: dict[str, Any]) -> Table | None:
    rows = [row for row in found["evaluations"] if row.get("by_source")]
    last = list({row.get("phase"): row for row in rows}.values())
    names = source_names(rows)
    if len(names) < 2:
        return None
    cells = [[name, *(number(row["by_source"].get(name, {}).get("loss"), ".3f") for row in last)] for name in names]
    return Table("|".join(["held-out loss", *(f"{row.get('phase')}>" for row in last)]), cells)


def _hardware(found: dict[str, Any]) -> list[tuple[str, str]]:
    head, sessions = found["headline"], found["sessions"] or []
    places = [session.get("environment") or {} for session in sessions] or [found["environment"]]
    environment = found["environment"]
    pace = head["tokens_per_second"]
    rows = [
        ("hardware", _each(devices(place) for place in places)),
        ("processes", _each(_processes(place) for place in places)),
        ("precision", _each(place.get("dtype") for place in places)),
        ("time in training steps", duration(head["seconds"])),
        ("sessions", str(len(sessions)) if sessions else "–"),
        ("tokens a second, at last", quantity(float(f"{pace:.3g}")) if pace else "–"),
        ("commit", _each(place.get("commit") for place in places)),
        ("versions", ", ".join(f"{name} {environment[name]}" for name in VERSIONS if environment.get(name))),
    ]
    return [(name, value) for name, value in rows if value]


def _processes(environment: dict[str, Any]) -> str | None:
    """Of a run of several: how many, and where."""
    count, hosts = environment.get("device_count"), environment.get("hosts") or 1
    if not isinstance(count, int) or count < 2:
        return None
    threads = f", {environment['threads']} threads each" if environment.get("threads") else ""
    return f"{count} on {hosts} host{'s' if hosts > 1 else ''}{threads}"


def _command(environment: dict[str, Any]) -> str:
    """What trains it anew, with as many processes."""
    command = "modernbert pretrain recipe.toml --out RUN"
    count, hosts = environment.get("device_count"), environment.get("hosts") or 1
    if not isinstance(count, int) or count < 2:
        return command
    nodes = f"--nnodes {hosts} " if hosts > 1 else ""
    return f"torchrun {nodes}--nproc-per-node {count // hosts} -m {command}"


def _each(values: Any) -> str:
    """Different values in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _limitations(story: Story, about: dict[str, Any]) -> list[str]:
    longest = max(phase["sequence_length"] for phase in story.recipe["phases"])
    positions = about["what"]["positions"]
    sentences = [
        "Trained to answer masked tokens, and for no task; evaluated by held-out loss, and on no benchmark.",
        "What its text says, and leaves out, was not examined for bias.",
    ]
    if positions > longest:
        sentences.append(f"It takes {positions:,} tokens and was trained on sequences of at most {longest:,}.")
    if not story.languages:
        sentences.append("The languages of its text are not stated.")
    if (about["training"].get("share_of_rate_left") or 0) >= 1:
        sentences.append(
            "Its learning rate had not been decayed: a model to train on, not the best that this run gives."
        )
    return sentences


def _revisions(story: Story) -> Table:
    losses = {row["name"]: row["heldout_loss"] for row in story.found["checkpoints"]}
    rows = [
        [p.revision, p.phase, f"{p.tokens:,}", number(p.step), number(losses.get(p.checkpoint), ".3f")]
        for p in story.revisions
    ]
    return Table("revision|phase|tokens>|step>|held-out loss>", rows)


def _revisions_note(story: Story, training: dict[str, Any]) -> str:
    recipe = "annealed-continue" if training.get("decayed") else "base-continue"
    state = (
        "Each holds the optimizer too, in `state/`."
        if story.with_state
        else "They hold weights, and no optimizer's state."
    )
    return (
        f'Each is a branch: `from_pretrained("{story.repo}", revision=…)`. {state} To train on from this one: `modernbert '
        f"pretrain {recipe} phases.adapt.checkpoint=FOLDER data.path=SHARDS`, with the folder that it was downloaded to."
    )
