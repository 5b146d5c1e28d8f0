"""Whole runs, assembled in data order: the one module that may import every stage."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import torch

import modernbert
from modernbert.data import MlmBatches
from modernbert.errors import ConfigError
from modernbert.runtime import Runtime
from modernbert.tasks import EncoderModel, MaskedLM
from modernbert.text.shards import Shards
from modernbert.text.tokenizer import load_tokenizer, special_ids
from modernbert.train.checkpoint import Progress, RunFolder
from modernbert.train.log import draw_curve
from modernbert.train.loop import Hooks, evaluate_on, fit
from modernbert.train.optim import build_optimizer
from modernbert.train.peak import peak_flops
from modernbert.train.recipe import PhaseSettings, PretrainRun, refuse_other_recipe


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
    with RunFolder.locked(Path(out)) as folder:
        about = {"recipe": run.model_dump(mode="json"), "data": data_fingerprint(shards)}
        if folder.recipe is not None:
            refuse_other_recipe(folder.recipe, run, str(out))
            if folder.about["data"] != about["data"]:
                raise ConfigError(f"{run.data.path} is not the data that {out} began with; give that, or another --out")
        if folder.finished:
            hooks.on_remark(f"{out} is finished: {run.loop.tokens:,} tokens; nothing to do")
            return folder.checkpoints()[-1]

        task = MaskedLM(config, tokenizer, out_dropout=run.model.attention_dropout).draw(run.seed).to(runtime.device)
        optimizer = build_optimizer(task, run.optim, run.phases[0].lr)
        progress = Progress()
        torch.manual_seed(run.seed)
        if folder.checkpoints():
            progress, remarks = folder.restore(task, optimizer, runtime)
            for remark in (f"going on with {out} behind step {progress.step:,}", *remarks):
                hooks.on_remark(remark)
        peak, peak_source = peak_flops(config, runtime, run.phases[0].micro_batch_tokens)
        hooks.on_remark(f"peak for MFU: {peak_source}")
        folder.write_about(
            **about, status="unfinished", environment=environment(runtime), peak_flops=peak, peak_source=peak_source
        )

        def evaluate(model: EncoderModel) -> dict[str, float]:
            return evaluate_on(model, held_out.once(), runtime, run.loop.eval_size_tokens)

        held_out = mlm_batches(run, run.phases[0], split="heldout")
        fit(task, optimizer, run, lambda phase: mlm_batches(run, phase), evaluate, progress, folder, runtime, peak, hooks)
        folder.write_about(status="finished")
        draw_curve(folder.path)
        return folder.checkpoints()[-1]


def mlm_batches(run: PretrainRun, phase: PhaseSettings, split: str = "train") -> MlmBatches:
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
    packages = ("modernbert", "tokenizers", "safetensors", "torch-optimi", "numpy")
    return {
        **runtime.describe(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, if it does."""
    command = ["git", "-C", str(Path(modernbert.__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
