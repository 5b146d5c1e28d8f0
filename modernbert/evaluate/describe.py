"""A checkpoint → what it is, how far its training had come, how to go on from it, and whether its files agree.

Which phase a model is from decides how training can go on: before any decay at the rate it had, after it with a new, lower
warm-up. A run of this package says so itself (run.json, state/); of other models it is known where they are published, or
where their name tells the step; and RoPE bases tell whether the context has been extended. What is not known is said too.
"""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import Any

from modernbert.console import Console
from modernbert.errors import ModernBertError
from modernbert.evaluate.agreement import examine_folder
from modernbert.evaluate.contents import Contents
from modernbert.model import hub
from modernbert.model.config import FULL, PRESETS, UNEXTENDED_THETA, ModernBertConfig
from modernbert.settings import read_recipe
from modernbert.tasks.load import newest_checkpoint
from modernbert.text.tokenizer import ROLES, num_ids, special_ids
from modernbert.train.checkpoint import RUN_FILE, RunFolder, read_about
from modernbert.train.recipe import PretrainRun, tokens_of
from modernbert.train.schedule import learning_rate

_SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_HEADS = {"head.dense.weight": "prediction head", "decoder.bias": "MLM decoder", "classifier.weight": "classifier"}

# Published when their last phase had ended; Ettin's and mmBERT's steps are revisions and folders named as below.
_ANNEALED = re.compile(r"(answerdotai/ModernBERT-|jhu-clsp/ettin-encoder-|jhu-clsp/mmBERT-)(?!checkpoints)[\w.-]+")
_STEP_NAMES = {"step": False, "stable": False, "ext": False, "extend": False, "decay": True, "anneal": True}


def describe(folder_or_hub_name: str | Path) -> dict[str, Any]:
    """Examine a checkpoint folder, a run folder (its newest checkpoint) or a hub name.

    Returns:
        Plain data: `what` it is, its `training`, `continue` (sentences), and `findings` of level ok, warning or error.

    Raises:
        CheckpointError: there is none, or it has no config.json that can be read.
    """
    folder = newest_checkpoint(hub.find_folder(folder_or_hub_name))
    found = examine_folder(folder)
    training = _training_of(str(folder_or_hub_name), folder, found.config)
    return {
        "model": str(folder_or_hub_name),
        "folder": str(folder),
        "what": _what(found),
        "training": training,
        "continue": _how_to_continue(str(folder_or_hub_name), folder, training, found.config),
        "findings": [finding._asdict() for finding in found.findings],
        "errors": sum(finding.level == "error" for finding in found.findings),
    }


def rows(found: dict[str, Any]) -> list[list[str]]:
    """What `describe` found, less how to continue, as rows of one table for a person: section, name, value."""
    shown = [["what", *_row(name, value)] for name, value in found["what"].items()]
    shown += [["training", *_row(name, value)] for name, value in found["training"].items()]
    shown += [["files", finding["level"], finding["text"]] for finding in found["findings"]]
    sections = ["", *(row[0] for row in shown)]
    return [["" if row[0] == before else row[0], *row[1:]] for before, row in zip(sections, shown, strict=False)]


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `describe` found."""
    console.table(["", "what", "value"], rows(found))
    console.heading("to go on training")
    for sentence in found["continue"]:
        console.say(sentence)


def _row(name: str, value: Any) -> list[str]:
    return [name.replace("_", " "), "none of them" if name == "preset" and value is None else _said(value)]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {entry:g}" if isinstance(entry, float) else f"{name} {entry}" for name, entry in value.items()
        )
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _what(found: Contents) -> dict[str, Any]:
    config, tensors = found.config, found.tensors
    what: dict[str, Any] = {
        "architecture": found.architecture,
        "heads": [said for name, said in _HEADS.items() if name in tensors],
        "parameters": sum(math.prod(header.shape) for name, header in tensors.items() if name != "decoder.weight"),
    }
    if config is not None:
        same = (
            name for name, preset in PRESETS.items() if all(getattr(preset, f) == getattr(config, f) for f in _SHAPE)
        )
        what |= {
            "preset": next(same, None),
            "shape": {name: getattr(config, name) for name in _SHAPE},
            "positions": config.max_position_embeddings,
            "window": config.local_attention,
            "layers": "".join("G" if kind == FULL else "l" for kind in config.layer_types or ()),
            "rope_bases": {"global": config.global_rope_theta, "local": config.local_rope_theta},
            "embedding_rows": config.vocab_size,
        }
    if found.tokenizer is not None:
        what["tokenizer_ids"] = num_ids(found.tokenizer)
        with contextlib.suppress(ModernBertError):  # it is among the findings
            special = special_ids(found.tokenizer)
            what["special_ids"] = {role: getattr(special, role) for role in ROLES}
    return what


def _training_of(name: str, folder: Path, config: ModernBertConfig | None) -> dict[str, Any]:
    """Phase, step, tokens; whether the rate had fallen (`decayed`) and the context been extended; None: not known."""
    extended = None if config is None else config.global_rope_theta > UNEXTENDED_THETA
    known: dict[str, Any] = {"phase": None, "step": None, "tokens": None, "decayed": None}
    is_run = (folder / RUN_FILE).exists()  # its phases may be named and shaped in any way
    step_name = re.fullmatch(r"(.+?)-?(\d+)", folder.name)
    if step_name and not is_run and step_name[1] not in _STEP_NAMES:
        step_name = None
    if step_name:
        decayed = None if is_run else _STEP_NAMES[step_name[1]]
        known |= {"phase": step_name[1], "step": int(step_name[2]), "decayed": decayed}
    elif _ANNEALED.fullmatch(name):
        known |= {"phase": "finished", "decayed": True}
    has_state = (folder / "state").is_dir()
    return {
        **known,
        **_by_its_run(folder, step_name[1] if step_name else None),
        "extended_rope_base": extended,
        "optimizer": has_state,
    }


def _by_its_run(folder: Path, phase_name: str | None) -> dict[str, Any]:
    """What the run.json beside a checkpoint, and its state/, say; nothing where there is none that can be read."""
    try:
        run = PretrainRun.parse(read_about(folder)["recipe"])
        progress = RunFolder.progress_of(folder)
        phase = next(phase for phase in run.phases if phase.name == phase_name)
        budget = run.phase_tokens(phase)
        share = learning_rate(
            progress.phase_tokens, peak=1.0, total=budget, decay=tokens_of(phase.decay_tokens, budget),
            decay_to=phase.decay_to, shape=phase.decay_shape,
        )  # fmt: skip
    except (ModernBertError, OSError, TypeError, StopIteration):
        return {}
    return {
        "phase": phase.name,
        "step": progress.step,
        "tokens": progress.tokens,
        "share_of_phase": min(1.0, progress.phase_tokens / budget),
        "share_of_rate_left": share,
        "decayed": share < 1,
        "peak_lr": phase.lr,
        "weight_decay": run.optim.weight_decay if phase.weight_decay is None else phase.weight_decay,
    }


def _how_to_continue(name: str, folder: Path, training: dict[str, Any], config: ModernBertConfig | None) -> list[str]:
    """Commands and what they are for."""
    source = str(folder) if training["optimizer"] else name
    plain = f"phases.adapt.checkpoint={source} data.path=SHARDS"
    stable = f"modernbert pretrain base-continue {plain}{_within('base-continue', config)}"
    annealed = f"modernbert pretrain annealed-continue {plain}{_within('annealed-continue', config)}"
    if training["optimizer"]:
        stable += " phases.adapt.start=weights+optimizer phases.adapt.warmup_tokens=0"
    if "peak_lr" in training:
        rate = training["peak_lr"]
        stable += f" phases.adapt.lr={rate:g} phases.anneal.lr={rate:g} optim.weight_decay={training['weight_decay']:g}"
    said = []
    if training["optimizer"] and (folder.parent / RUN_FILE).exists():
        said.append(f"exactly where it stopped: give its run's command again, with --out {folder.parent}")
    if training["decayed"] is None:
        said.append(f"if its rate had not fallen when it was saved: {stable}")
        said.append(f"if it is a finished model, or you do not know: {annealed}")
    else:
        said.append(f"its rate had fallen: {annealed}" if training["decayed"] else f"its rate had not fallen: {stable}")
    if config is not None and not training["extended_rope_base"]:
        said.append(
            f"its context is not extended ({config.max_position_embeddings:,} positions, RoPE base "
            f"{config.global_rope_theta:,.0f}): keep sequence_length within it, or extend it: a sequence_length of 8192 with "
            "model.max_position_embeddings=8192 phases.adapt.global_rope_theta=160_000.0"
        )
    return said


def _within(recipe: str, config: ModernBertConfig | None) -> str:
    """Settings that keep a recipe's phases within the model's positions; none where they are."""
    positions = math.inf if config is None else config.max_position_embeddings
    return "".join(
        f" phases.{phase['name']}.sequence_length={positions}"
        for phase in read_recipe(recipe)["phases"]
        if phase["sequence_length"] > positions
    )
