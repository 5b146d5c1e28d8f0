"""A recipe, its text and the checkpoints it names → refused, or remarked on, before anything is trained."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.data import MlmBatches
from modernbert.data.budget import cap_remarks, check_budget, epochs_by_source, long_share_remark
from modernbert.data.mix import refuse_other_tokenizers
from modernbert.errors import CheckpointError, ConfigError
from modernbert.model import hub
from modernbert.model.config import UNEXTENDED_THETA, ModernBertConfig
from modernbert.ranks import Ranks
from modernbert.remote import is_address
from modernbert.tasks import MaskedLM
from modernbert.tasks.load import newest_checkpoint
from modernbert.text import Shards, load_tokenizer, special_ids
from modernbert.train.checkpoint import Progress, RunFolder
from modernbert.train.recipe import PhaseSettings, PretrainRun, changes_of
from modernbert.train.saving import free_space_problem

# What a checkpoint's shape may differ in: ids and initialisation are of no account, and a phase sets its own bases.
_MAY_DIFFER = {
    *("global_rope_theta", "local_rope_theta", "max_position_embeddings"),
    *("initializer_range", "initializer_cutoff_factor"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "extra"),
}
_MOST_EPOCHS = 4  # of a source over all phases, beyond which repetition deserves a word


def open_sources(run: PretrainRun) -> dict[str, Shards]:
    """The training split of each source.

    Raises:
        DataError: shards that cannot be used, or of different tokenizers, also where no phase reads them.
    """
    sources = {name: Shards.open(path) for name, path in run.data.folders().items()}
    refuse_other_tokenizers(sources)
    return sources


def shape_of(run: PretrainRun, sources: dict[str, Shards], goes_on_in: Path | None = None) -> ModernBertConfig:
    """The model's shape; every checkpoint that a phase is still to start from must have it, and its tokenizer.

    Args:
        run: the recipe.
        sources: its text.
        goes_on_in: the folder of the run, where it may have begun already: then the shape is that of its newest checkpoint.

    Raises:
        CheckpointError: a checkpoint of another shape or tokenizer, or without the state that a phase wants of it.
    """
    folder = None if goes_on_in is None else RunFolder(goes_on_in)
    begun = folder.newest() if folder is not None and folder.checkpoints() else None
    num_begun = 0 if begun is None else _place_of(run, RunFolder.progress_of(begun)) + 1
    parents = {phase.name: _parent_of(phase) for phase in run.phases[num_begun:] if phase.checkpoint is not None}
    first = begun or parents.get(run.phases[0].name)
    special = special_ids(load_tokenizer(next(iter(sources.values())).folder))
    vocab_size = max(shards.vocab_size for shards in sources.values())
    config = run.model.config(vocab_size, special, None if first is None else hub.read_config(first))
    for name, parent in parents.items():
        _refuse_other_shape(name, parent, config, run)
        _refuse_other_tokenizer(name, parent, next(iter(sources.values())))
    for phase in run.phases:
        if phase.sequence_length > config.max_position_embeddings:
            raise ConfigError(
                f"phase {phase.name}: sequence_length={phase.sequence_length} exceeds the model's "
                f"{config.max_position_embeddings} positions; shorten it, or raise model.max_position_embeddings"
            )
    return config


def _place_of(run: PretrainRun, progress: Progress) -> int:
    """The index of the phase that a run is in, by its name: the recipe may have been edited since."""
    names = [phase.name for phase in run.phases]
    return names.index(progress.name) if progress.name in names else progress.phase


def _parent_of(phase: PhaseSettings) -> Path:
    assert phase.checkpoint is not None
    if phase.start != "weights" and is_address(phase.checkpoint):
        raise CheckpointError(
            f"phase {phase.name}: of a model at an address such as {phase.checkpoint} only weights are fetched; copy the "
            'checkpoint here with its state/ and give that folder, or take the weights with start="weights" and a warm-up'
        )
    folder = newest_checkpoint(hub.find_folder(phase.checkpoint))
    if phase.start != "weights" and not (folder / "state").is_dir():
        raise CheckpointError(
            f'phase {phase.name}: {folder} holds weights alone, no state/ of a run; take them with start="weights" '
            "and a warm-up"
        )
    return folder


def _refuse_other_shape(phase: str, parent: Path, config: ModernBertConfig, run: PretrainRun) -> None:
    theirs, meant = hub.read_config(parent), run.model.model_dump(exclude_none=True)
    differing = [
        f"{f.name}={getattr(theirs, f.name)} (here {getattr(config, f.name)})"
        for f in fields(config)
        if f.name not in _MAY_DIFFER and getattr(theirs, f.name) != getattr(config, f.name)
        and (f.name not in meant or f.name in _SIZES)
        and not (f.name == "layer_types" and "global_attn_every_n_layers" in meant)
    ]  # fmt: skip
    if differing:
        raise CheckpointError(
            f"phase {phase}: {parent} is of another shape: {', '.join(differing)}; give a checkpoint of this shape, leave "
            "model.preset out to take the checkpoint's, or start larger with model.tile_from"
        )


_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def _refuse_other_tokenizer(phase: str, parent: Path, shards: Shards) -> None:
    if not (parent / "tokenizer.json").exists():
        return
    theirs, ours = load_tokenizer(parent), load_tokenizer(shards.folder)
    if theirs.get_vocab() != ours.get_vocab() or special_ids(theirs) != special_ids(ours):
        raise CheckpointError(
            f"phase {phase}: {parent} has another tokenizer than the data in {shards.folder}, so its ids mean other "
            f"text; build the data with --tokenizer {parent}"
        )


def base_remarks(run: PretrainRun, config: ModernBertConfig) -> list[str]:
    """What is odd about a continued model's positions."""
    first = run.phases[0]
    if first.checkpoint is None or first.global_rope_theta is not None or first.sequence_length <= 1024:
        return []
    if config.global_rope_theta > UNEXTENDED_THETA:
        return []
    return [
        f"phase {first.name}: {first.checkpoint} turns its global layers by a RoPE base of {config.global_rope_theta:,.0f}, "
        f"as models of short texts do, and the phase reads {first.sequence_length:,} tokens; set "
        f"phases.{first.name}.global_rope_theta=160_000 to extend its context"
    ]


def ranks_remarks(run: PretrainRun, ranks: Ranks) -> list[str]:
    """What several ranks, or a strategy for them, are no use for."""
    if ranks.steps is None:
        alone = "compute.strategy=fsdp shards nothing in one process; start it with torchrun --nproc-per-node 2 -m modernbert …"
        return [alone] if run.compute.strategy == "fsdp" else []
    found = []
    for phase in run.phases:
        count = phase.tokens_per_step // phase.micro_batch_tokens
        passes = -(-count // ranks.size)
        if (idle := passes * ranks.size - count) > 0:
            found.append(
                f"phase {phase.name}: {count} micro-batches a step over {ranks.size} ranks leave {idle} of {passes * ranks.size} "
                f"places idle; a micro_batch_tokens of {phase.tokens_per_step // (passes * ranks.size):,} or less would fill them"
            )
    return found


def check_text(run: PretrainRun) -> list[str]:
    """Refuse text that cannot fill a phase, and say what is odd about it."""
    remarks: list[str] = []
    read: dict[str, float] = {}
    for index, phase in enumerate(run.phases):
        mixture, tokens = mlm_batches(run, index).mixture, run.phase_tokens(phase)
        check_budget(mixture, tokens + phase.tokens_per_step)  # the last step may reach beyond the budget
        found = cap_remarks(mixture, tokens)
        for source, times in epochs_by_source(mixture, tokens).items():
            read[source] = read.get(source, 0.0) + times
        before = run.phases[index - 1].sequence_length if index else phase.sequence_length
        if before < phase.sequence_length:
            found.append(long_share_remark(mixture, before, tokens, run.data.warn_long_share) or "")
        remarks += [f"phase {phase.name}: {remark}" for remark in found if remark]
    return remarks + [
        f"{source} is read {times:.1f} times over all phases, and published recipes read mostly unique text; add text, or "
        "give it less weight"
        for source, times in read.items()
        if times > _MOST_EPOCHS
    ]


def changes_from(folder: RunFolder, run: PretrainRun, data: dict[str, str], *, allow: bool) -> list[str]:
    """What differs from the run in the folder.

    Raises:
        ConfigError: something does, and that is not allowed.
    """
    if folder.recipe is None:
        return []
    changes = changes_of(folder.recipe, run)
    if changes and not allow:
        raise ConfigError(
            f"{folder.path} holds a run with {', '.join(changes[:3])}; go on with the same settings, say --allow-change "
            "if the change is meant, or choose another --out"
        )
    if folder.about["data"] != data:
        paths = ", ".join(run.data.folders().values())
        changes.append(f"{paths} is not the data that {folder.path} began with")
        if not allow:
            raise ConfigError(f"{changes[-1]}; give that, say --allow-change if it is meant, or choose another --out")
    return changes


def need_room(folder: RunFolder, task: MaskedLM) -> None:
    """Two checkpoints must fit: one is written before another is deleted."""
    problem = free_space_problem(folder.path, 2 * 3 * 4 * task.num_parameters)
    if problem is not None:
        raise CheckpointError(problem)


def mlm_batches(run: PretrainRun, index: int, stream: int | None = None) -> MlmBatches:
    """The masked, packed training text of a phase, in the order of the stream that began in a phase (this one)."""
    phase = run.phases[index]
    return MlmBatches(
        run.data.folders(), mixture=phase.mixture, sequence_length=phase.sequence_length,
        micro_batch_tokens=phase.micro_batch_tokens, mask_rate=phase.mask_rate, mask_rate_end=phase.mask_rate_end,
        total_tokens=run.phase_tokens(phase), seed=stream_seed(run.seed, index if stream is None else stream),
    )  # fmt: skip


def stream_seed(seed: int, stream: int) -> int:
    """Of order and masks: each stream has its own, or a new phase would show the same text once more."""
    return seed if stream == 0 else int(np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0] >> 1)


def held_out_batches(run: PretrainRun, source: str, sequence_length: int) -> MlmBatches:
    """The held-out text of a source at the evaluation's masking rate: the same masks whenever it is asked for."""
    return MlmBatches(
        {source: run.data.folders()[source]}, split="heldout", sequence_length=sequence_length,
        micro_batch_tokens=max(run.phases[0].micro_batch_tokens, sequence_length),
        mask_rate=run.loop.eval_mask_rate, seed=run.seed,
    )  # fmt: skip


def has_held_out(folder: str) -> bool:
    """Whether a shard folder keeps documents apart for evaluation."""
    return bool(Shards.open(folder).manifest["splits"]["heldout"]["shards"])


def data_fingerprint(manifest: dict[str, Any]) -> str:
    """A hash of all token ids and scores of a shard folder, and of its tokenizer: the same data under any path."""
    parts = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    hashes = [shard[name] for shard in parts for name in ("sha256", "score_sha256") if name in shard]
    return hashlib.sha256("".join([manifest["tokenizer"], *hashes]).encode()).hexdigest()[:16]
