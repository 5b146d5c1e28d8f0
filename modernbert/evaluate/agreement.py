"""A checkpoint folder → what is in it, and whether its files agree with each other, as findings.

A wrong special id, a head that is not there, or keys of one generation only are all silent elsewhere: the model loads and
answers worse. Each is a line here. `error`: a reader fails or answers wrongly; `warning`: some reader does, or a habit is
broken; `ok`: looked at and in order. Price: every tensor is read, one at a time.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch

from modernbert.errors import ModernBertError
from modernbert.evaluate.contents import Contents, Header
from modernbert.evaluate.special_tokens import compare_lengths, look_at_tokenizer
from modernbert.model import config as config_module
from modernbert.model import hub
from modernbert.model.config import ModernBertConfig
from modernbert.tasks import MaskedLM

_EMBEDDING, _DECODER = "model.embeddings.tok_embeddings.weight", "decoder.weight"
_HEADS_OF = {"ForMaskedLM": "head.dense.weight", "Classification": "classifier.weight",
             "QuestionAnswering": "classifier.weight", "MultipleChoice": "classifier.weight"}  # fmt: skip


def examine_folder(folder: Path) -> Contents:
    """Read a checkpoint folder and compare its files.

    Raises:
        CheckpointError: it has no config.json that can be read.
    """
    found = Contents(folder, hub.read_config_values(folder))
    _look_at_config(found)
    _look_at_weights(found)
    if found.config is not None and found.tensors:
        _compare_shapes(found, found.config)
    look_at_tokenizer(found)
    if found.config is not None:
        compare_lengths(found, found.config)
    return found


@contextmanager
def _warnings_of(logger: logging.Logger) -> Iterator[list[str]]:
    """What a logger says for a while, instead of saying it."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def _look_at_config(found: Contents) -> None:
    try:
        with _warnings_of(config_module.log) as disagreements:
            found.config = ModernBertConfig.from_dict(found.values)
    except ModernBertError as error:
        found.error(str(error))
        return
    for line in disagreements:
        found.error(line)
    if found.values.get("architectures") and found.architecture is None:
        found.error(f"config.json: architectures={found.values['architectures']!r} is no list of names")
    older, newer = ({"global_rope_theta", "global_attn_every_n_layers"}, {"rope_parameters", "layer_types"})
    if not older <= found.values.keys() and newer & found.values.keys():
        missing = ", ".join(sorted(older - found.values.keys()))
        found.warn(
            f"config.json has no {missing}: transformers before 5.0 and many servers then take their defaults in silence; "
            "load and save it once with modernbert, which writes both generations of keys"
        )
    elif newer <= found.values.keys():
        if not disagreements:
            found.ok("config.json: both generations of keys are there and agree")
    else:
        found.ok("config.json: the older generation of keys, which every version reads")


def _look_at_weights(found: Contents) -> None:
    folder, files = found.folder, [hub.WEIGHTS]
    promised: dict[str, str] = {}
    if (folder / hub.WEIGHTS_INDEX).exists():
        try:
            promised = json.loads((folder / hub.WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(promised, dict) or not all(isinstance(file, str) for file in promised.values()):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError) as error:
            found.error(f"{hub.WEIGHTS_INDEX} names no files ({type(error).__name__}); restore it from a good copy")
            return
        files = sorted(set(promised.values()))
    broken = []
    for name in files:
        try:
            broken += _read_file(found, name)
        except (OSError, safetensors.SafetensorError) as error:
            reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            pickled = "; there are pickled weights: open and save them once with transformers" if any(
                folder.glob("pytorch_model*.bin")) else ""  # fmt: skip
            found.error(f"{name} {reason}{pickled or '; restore it from a good copy'}")
    lost = [name for name, file in promised.items() if name not in found.tensors or found.tensors[name].file != file]
    if lost:
        found.error(
            f"{hub.WEIGHTS_INDEX} promises {_some(lost)} that the files do not hold; restore them from a good copy"
        )
    if not any(name.startswith("model.") for name in found.tensors):  # a bare encoder names its tensors without
        found.tensors = {f"model.{name}": header for name, header in found.tensors.items()}
    if broken:
        found.error(f"not finite: {_some(broken)}; take an earlier checkpoint")
    elif found.tensors:
        found.ok(f"{len(found.tensors)} tensors, all finite")
    _look_at_dtypes(found)
    _look_at_decoder(found)


def _read_file(found: Contents, name: str) -> list[str]:
    """Note the headers of a file's tensors; returns those with values that are not finite."""
    broken = []
    with safetensors.safe_open(found.folder / name, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_tensor(key)
            found.tensors[key] = Header(tuple(tensor.shape), tensor.dtype, name)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                broken.append(key)
    return broken


def _look_at_dtypes(found: Contents) -> None:
    stored = Counter(header.dtype for header in found.tensors.values())
    said = found.values.get("dtype", found.values.get("torch_dtype"))
    names = [str(dtype).removeprefix("torch.") for dtype, _ in stored.most_common()]
    if len(names) > 1:
        found.warn(f"tensors are of several kinds: {', '.join(names)}")
    elif names and said is not None and said != names[0]:
        found.warn(f"config.json says {said} and the tensors are {names[0]}; transformers 5 loads them as the former")


def _look_at_decoder(found: Contents) -> None:
    if not {_EMBEDDING, _DECODER} <= found.tensors.keys():
        return
    both = []
    for name in (_EMBEDDING, _DECODER):
        with safetensors.safe_open(found.folder / found.tensors[name].file, "pt") as file:
            both.append(file.get_tensor(name))
    if torch.equal(*both):
        found.ok("decoder.weight is there and is the embedding")
    else:
        found.error("decoder.weight differs from the embedding: readers that tie them leave the former out")


def _compare_shapes(found: Contents, config: ModernBertConfig) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in hub.on_meta(lambda: MaskedLM(config)).state_dict().items()}
    head = {name for name in wanted if not name.startswith("model.")}
    has_head = "head.dense.weight" in found.tensors
    misshapen = [name for name in wanted if name in found.tensors and found.tensors[name].shape != wanted[name]]
    if misshapen:
        name = misshapen[0]
        found.error(
            f"config.json and the weights do not belong together: {_some(misshapen)} of another shape "
            f"({name} is {found.tensors[name].shape}, config.json asks for {wanted[name]})"
        )
    classifies = "classifier.weight" in found.tensors
    needed = wanted.keys() - (set() if has_head and not classifies else head)
    if missing := sorted(needed - found.tensors.keys()):
        found.error(f"the weights are incomplete: no {_some(missing)}")
    unknown = sorted(name for name in found.tensors if name.startswith("model.") and name not in wanted)
    if unknown:
        found.warn(
            f"{_some(unknown)} that the architecture does not have: transformers leaves it out, modernbert asks for "
            "--ignore-unexpected"
        )
    if not (misshapen or missing or unknown):
        found.ok("the tensors are those that config.json asks for")
    for suffix, name in _HEADS_OF.items():
        if (found.architecture or "").endswith(suffix) and name not in found.tensors:
            found.error(
                f"config.json says {found.architecture}, and there is no {name}: readers would draw a head at random"
            )


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
