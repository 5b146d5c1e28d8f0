"""What the reference trainer wrote → what this package reads: Composer checkpoints (and back), MDS shards of token ids.

Steps for a checkpoint: read (`modernbert.model.composer`), put into a model, refuse what is not finite, write, open again
as a reader would (with transformers where it is installed, which is other code) and compare scores on a sample before the
folder takes its name. Price: the checkpoint once in memory as float32, and once more while it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from modernbert.batch import PackedBatch
from modernbert.errors import CheckpointError, ConfigError
from modernbert.model import hub
from modernbert.model.composer import ComposerCheckpoint, config_of, read_composer, write_composer
from modernbert.model.config import ModernBertConfig
from modernbert.tasks import MaskedLM, load
from modernbert.text.tokenizer import load_tokenizer, special_ids

_TOLERANCE = 1e-3  # of the norm of the scores: float32 sums in another order over 28 layers make some 1e-5
_SAMPLE_TOKENS = 300  # beyond two windows of 128


def import_any(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | None = None,
    settings: Path | None = None,
    column: str | None = None,
    heldout: float | None = None,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **changes: float | None,
) -> dict[str, Any]:
    """Tell by the source what it is: a Composer file, one of our models (to be turned into such a file), or MDS shards.

    Args:
        source: a `.pt` file, a model folder or run folder, or a folder of MDS shards.
        out: the model folder, the `.pt` file, or the shard folder to write.
        tokenizer: needed for shards; see `import_composer`.
        settings: see `import_composer`.
        column: of shards, as are the next three: see `modernbert.text.mds.import_mds`, also for what they are if not given.
        heldout: share of documents.
        seed: of the held-out split.
        progress: called with samples and tokens.
        **changes: see `import_composer`.

    Returns:
        `kind` ("model", "composer" or "shards") and the result of what was done.

    Raises:
        ConfigError: something is given that says nothing of such a source.
        ModernBertError: as what was done.
    """
    folder = Path(source)
    is_model = (folder / hub.CONFIG).exists() or bool(hub.checkpoints_in(folder))
    kind = "model" if not folder.is_dir() else "composer" if is_model else "shards"
    of_shards = {"column": column, "heldout": heldout, "seed": seed}
    _refuse_idle(kind, source, {"tokenizer": tokenizer, "config": settings, **changes, **of_shards})
    if kind == "model":
        return {"kind": "model", **import_composer(source, out, tokenizer=tokenizer, settings=settings, **changes)}
    if kind == "composer":
        if Path(out).suffix != ".pt":
            raise ConfigError(
                f"{source} is a model of this package already; to write a Composer file say --out FILE.pt"
            )
        return {"kind": "composer", **export_composer(source, out)}
    from modernbert.text.mds import import_mds

    if tokenizer is None:
        raise ConfigError(f"{source}: the shards do not say whose ids they hold; give --tokenizer=FOLDER_OR_NAME")
    given: dict[str, Any] = {name: value for name, value in of_shards.items() if value is not None}
    manifest = import_mds(source, tokenizer, out, progress=progress, **given)
    return {"kind": "shards", "out": str(out), "manifest": manifest, "remarks": manifest.get("remarks", [])}


_BASES = ("global_rope_theta", "local_rope_theta", "max_position_embeddings")
_APPLY = {
    "model": ("tokenizer", "config", *_BASES),
    "composer": (),
    "shards": ("tokenizer", "column", "heldout", "seed"),
}
_OPTIONS = {"max_position_embeddings": "--max-positions"}


def _refuse_idle(kind: str, source: str | Path, given: Mapping[str, object]) -> None:
    idle = [name for name, value in given.items() if value is not None and name not in _APPLY[kind]]
    if idle:
        options = ", ".join(_OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in idle)
        what = {"model": "a checkpoint file", "composer": "a model of this package", "shards": "a folder of shards"}
        raise ConfigError(f"{options}: of no use for {source}, which is {what[kind]}; leave it out")


def sentence(result: Mapping[str, Any]) -> str:
    """What was written, and how it was proven."""
    checked = result.get("checked")
    proof = f"; opened with {checked['with']}, scores differ by {checked['difference']:.1g}" if checked else ""
    return f"{result['out']}: written{proof}"


def import_composer(
    path: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    settings: str | Path | None = None,
    **changes: float | None,
) -> dict[str, Any]:
    """Turn a Composer `.pt` file into a model folder.

    Args:
        path: the file.
        out: the folder to write.
        tokenizer: its folder or hub name; the one stored in the checkpoint if not given. Special ids are its own.
        settings: the trainer's YAML, or JSON; it wins over what the checkpoint holds.
        **changes: `global_rope_theta`, `local_rope_theta`, `max_position_embeddings`, where nothing says them rightly.

    Returns:
        `out`, the shape, the remarks of what was assumed, and how far apart the scores were.

    Raises:
        CheckpointError: it cannot be read, is not finite, or answers otherwise when opened again.
        ConfigError: `out` already holds something.
    """
    out = Path(out)
    _refuse_existing(out)
    checkpoint = read_composer(path)
    entries = checkpoint.tokenizer() if tokenizer is None else load_tokenizer(tokenizer)
    config, remarks = config_of(checkpoint, entries, read_settings(settings) if settings else None, **changes)
    model = _model_of(checkpoint, config, entries)
    with hub.whole_folder(out) as folder:
        model.write(folder)
        checked = compare_scores(model.eval(), folder)
    if checkpoint.left_out:
        remarks.append(f"left out, as no part of the model: {', '.join(checkpoint.left_out[:3])}")
    remarks.append('the optimizer is not imported: go on with start="weights", as the recipe base-continue does')
    seen = {} if checkpoint.tokens is None else {"tokens": checkpoint.tokens}
    shape = config.to_dict(model.architecture)
    return {
        "out": str(out),
        "parameters": model.num_parameters,
        **seen,
        "config": shape,
        "checked": checked,
        "remarks": remarks,
    }


def _model_of(checkpoint: ComposerCheckpoint, config: ModernBertConfig, tokenizer: Tokenizer) -> MaskedLM:
    path, tensors = checkpoint.path, checkpoint.tensors
    if "head.dense.weight" not in tensors or "classifier.weight" in tensors:
        raise CheckpointError(
            f"{path} is no masked language model (no head.dense, or a classifier); give a pretrained one"
        )
    model = hub.on_meta(lambda: MaskedLM(config, tokenizer))
    hub.load_tensors(model, tensors, origin=path)
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} holds values that are not finite; take an earlier checkpoint")
    return model


def export_composer(model: str | Path, out: str | Path) -> dict[str, Any]:
    """Turn a masked language model into a `.pt` file that the reference trainer loads (`load_path`, weights only)."""
    out = Path(out)
    _refuse_existing(out)
    loaded = load(model)
    if not isinstance(loaded, MaskedLM):
        raise CheckpointError(f"{model} has no MLM head; give a pretrained model")
    write_composer(loaded.state_dict(), loaded.config, loaded.tokenizer, out)
    return {
        "out": str(out),
        "parameters": loaded.num_parameters,
        "remarks": ["the weights alone: no optimizer, no data state"],
    }


def read_settings(path: str | Path) -> Mapping[str, Any]:
    """A training configuration, YAML or JSON.

    Raises:
        ConfigError: there is none, or it is neither.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is neither YAML nor JSON ({reason}); give the trainer's own file") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no settings; give the trainer's own file")
    return values


def compare_scores(model: MaskedLM, folder: Path) -> dict[str, Any]:
    """Open a folder as its readers would, and compare with the model that was written there.

    Returns:
        With what it was opened, and the relative difference of the scores.

    Raises:
        CheckpointError: they differ, or are not finite.
    """
    config = model.config
    count = min(_SAMPLE_TOKENS, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(0))
    special = special_ids(model.need_tokenizer())
    ids[0], ids[-1], ids[count // 2] = special.cls, special.sep, special.mask
    name, scores_of = _reader(folder)
    with torch.inference_mode():
        ours_TV = model.logits(PackedBatch.from_sequences([ids]))
        difference = ((scores_of(ids) - ours_TV).norm() / ours_TV.norm()).item()
    if not difference <= _TOLERANCE:  # NaN too
        raise CheckpointError(
            f"opened again with {name} the scores differ by {difference:.2g} of their size, where {_TOLERANCE:g} is allowed, so "
            "nothing was written; please report this checkpoint"
        )
    return {"with": name, "difference": difference}


def _reader(folder: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    try:
        import transformers
    except ImportError:
        ours = load(folder)
        assert isinstance(ours, MaskedLM)
        return "modernbert", lambda ids_T: ours.logits(PackedBatch.from_sequences([ids_T]))
    transformers.logging.disable_progress_bar()
    theirs = transformers.ModernBertForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    return f"transformers {transformers.__version__}", lambda ids_T: theirs(ids_T[None]).logits[0]


def _refuse_existing(out: Path) -> None:
    """Whatever is there would be replaced as a whole."""
    if out.is_symlink() or (any(out.iterdir()) if out.is_dir() else out.exists()):
        raise ConfigError(f"{out} is there already; choose another --out or delete it")
