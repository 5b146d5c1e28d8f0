"""Checkpoint folder or hub name ↔ config and tensors, in the Hugging Face layout.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json

The state dict is the published one, so nothing is converted on the way in or out. A folder is written beside its
destination and renamed when all of it is on disk: whatever interrupts a save, a folder of that name is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from modernbert.disk import sync
from modernbert.errors import CheckpointError, UnsupportedError
from modernbert.model.config import ModernBertConfig
from modernbert.remote import is_address

WEIGHTS, WEIGHTS_INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

M = TypeVar("M", bound=nn.Module)

# Tensors of the heads that transformers knows: no surprise where the model has no such head. `decoder.weight` is
# the embedding's (`read_model_tensors` checks it).
_HEADS = ("head.", "decoder.", "classifier.")


def find_folder(folder_or_hub_name: str | Path) -> Path:
    """A local folder as it is; a hub name, or an address such as s3://…, through the local cache or the network.

    Raises:
        CheckpointError: neither is to be had.
    """
    if is_address(folder_or_hub_name):
        from modernbert.model.stored import fetch_model

        return fetch_model(str(folder_or_hub_name))
    folder = Path(folder_or_hub_name)
    if folder.is_dir():
        return folder
    name = str(folder_or_hub_name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise CheckpointError(f"{name}: no such folder, and not a hub name of the form owner/model")
    import huggingface_hub

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{name}: no such folder, and the hub did not give it ({type(error).__name__}); "
            "check the name and the network, or give a local folder"
        ) from error


def checkpoints_in(folder: Path) -> list[Path]:
    """Whole checkpoints of a run folder, `stable-00001000` and the like, by their steps."""
    found = [
        path
        for path in folder.glob("[!.]*-*")
        if path.name.rpartition("-")[2].isdecimal() and (path / CONFIG).exists() and (path / WEIGHTS).exists()
    ]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def read_config(folder: Path) -> ModernBertConfig:
    """The shape that `config.json` states."""
    return ModernBertConfig.from_dict(read_config_values(folder))


def read_config_values(folder: Path) -> dict:
    """`config.json` as it stands."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG}; it is no checkpoint folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore it from a good copy") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not an object")
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, from one safetensors file or from several named by an index."""
    files = [WEIGHTS]
    if (folder / WEIGHTS_INDEX).exists():
        try:
            files = sorted(set(json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / WEIGHTS_INDEX} names no files; restore it from a good copy") from error
    tensors: dict[str, Tensor] = {}
    for name in files:
        try:
            tensors |= safetensors.torch.load_file(folder / name)
        except FileNotFoundError as error:
            if list(folder.glob("pytorch_model*.bin")):
                remedy = "it holds pickled weights only: open and save it once with transformers to get safetensors"
            else:
                remedy = "give a folder that holds the whole checkpoint"
            raise CheckpointError(f"{folder} has no {name}; {remedy}") from error
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / name} cannot be read ({error}); restore it from a good copy") from error
    return tensors


def read_model_tensors(folder: Path) -> dict[str, Tensor]:
    """The same by the names that a model with a head has for them.

    Raises:
        CheckpointError: missing, or not to be read.
        UnsupportedError: a decoder of its own in place of the embedding's matrix.
    """
    tensors = read_tensors(folder)
    if not any(name.startswith("model.") for name in tensors):  # a bare ModernBertModel names its tensors without
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    decoder, embedding = tensors.get("decoder.weight"), tensors.get("model.embeddings.tok_embeddings.weight")
    if decoder is not None and embedding is not None and not torch.equal(decoder, embedding):
        raise UnsupportedError(f"{folder}: decoder.weight differs from the embedding; only a tied decoder is computed")
    return tensors


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    origin: Path,
    ignore_unexpected: bool = False,
    assign: bool = True,
) -> None:
    """Put a checkpoint's tensors into a module, as float32.

    Args:
        module: where to put them.
        tensors: by name.
        origin: the folder, for messages.
        ignore_unexpected: leave out tensors that the module does not have.
        assign: replace the module's tensors (needed on the meta device) instead of copying into them.

    Raises:
        CheckpointError: a tensor missing, of another shape, or (unless ignored) one that the model does not have:
            a model trained with it would answer differently without it.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{origin}: {_some(missing)} missing; the checkpoint is incomplete or of another model")
    misshapen = [n for n in wanted if wanted[n].shape != tensors[n].shape]
    if misshapen:
        name = misshapen[0]
        raise CheckpointError(
            f"{origin}: {_some(misshapen)} of the wrong shape ({name} is {tuple(tensors[name].shape)}, config.json "
            f"asks for {tuple(wanted[name].shape)}); config.json and the weights do not belong together"
        )
    parts = {name.partition(".")[0] for name in wanted}
    unexpected = sorted(
        name
        for name in tensors.keys() - wanted.keys()
        if name != "decoder.weight" and (name.partition(".")[0] in parts or not name.startswith(_HEADS))
    )
    if unexpected and not ignore_unexpected:
        raise CheckpointError(
            f"{origin}: {_some(unexpected)} unknown to this architecture, so its answers could be wrong without; "
            "load with ignore_unexpected=True (--ignore-unexpected) to leave them out"
        )
    module.load_state_dict({n: _cut_as(tensors[n].to(torch.float32), wanted[n]) for n in wanted}, assign=assign)


def _cut_as(tensor: Tensor, wanted: Tensor) -> Tensor:
    """The part of a tensor that this process has, where the module is sharded."""
    if type(wanted) is Tensor:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(wanted, DTensor)
    # Every process has read the whole, so none needs to send anything.
    return distribute_tensor(tensor.to(wanted.device), wanted.device_mesh, wanted.placements, src_data_rank=None)


def write_weights(folder: Path, state: Mapping[str, Tensor], config: ModernBertConfig, *, architecture: str) -> None:
    """Write `config.json` and, from a state dict, `model.safetensors` into an existing folder."""
    (folder / CONFIG).write_text(json.dumps(config.to_dict(architecture), indent=2, sort_keys=True) + "\n")
    tensors = {n: t.detach().to("cpu", torch.float32).contiguous() for n, t in state.items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def unfinished(destination: Path, token: str) -> Path:
    """Where several processes write what will be one folder; the token is of their session."""
    return destination.with_name(f".{destination.name}{_UNFINISHED}{token}")


@contextlib.contextmanager
def whole_folder(destination: Path, at: Path | None = None) -> Iterator[Path]:
    """A folder to write into that takes its final name, replacing what was there, when all is on disk.

    Args:
        destination: its final place.
        at: where it is until then (`unfinished`); may be there already. A place of its own if not given.

    Raises:
        CheckpointError: the disk is full or not writable. What was there before stays, and nothing half-written.
    """
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise CheckpointError(f"{destination} is no folder; choose another place to save to")
    temporary: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = at or Path(tempfile.mkdtemp(prefix=f".{destination.name}{_UNFINISHED}", dir=destination.parent))
        temporary.mkdir(exist_ok=True)
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        _put_in_place(temporary, destination)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{destination} could not be saved ({error}); free some space or choose another place. "
            "What was saved before is untouched"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


_UNFINISHED, _REPLACED, _REMOVED = ".unfinished-", ".replaced", "removed"


def _put_in_place(temporary: Path, destination: Path) -> None:
    replaced = destination.with_name(f".{destination.name}{_REPLACED}")
    had_one = destination.exists()
    if had_one:
        os.rename(destination, replaced)
    try:
        os.rename(temporary, destination)
    except BaseException:  # an interrupt between the two renames too
        if had_one:
            os.rename(replaced, destination)
        raise
    sync(destination.parent)
    if had_one:
        shutil.rmtree(replaced, ignore_errors=True)


def clear_unfinished(parent: Path) -> list[str]:
    """Clear away what saves cut off by a kill left behind in a folder of checkpoints; returns whose saves these were."""
    cut_off = []
    for path in parent.glob(f".*{_REPLACED}"):
        destination = path.with_name(path.name.removesuffix(_REPLACED)[1:])
        if destination.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:  # killed between the two renames
            os.rename(path, destination)
    for path in parent.glob(f".*{_UNFINISHED}*"):
        name, _, token = path.name[1:].rpartition(_UNFINISHED)
        if token != _REMOVED:
            cut_off.append(name)
        shutil.rmtree(path, ignore_errors=True)
    return sorted(cut_off)


def hidden_for_removal(path: Path) -> Path:
    """The name under which a folder that is being deleted is no checkpoint any more."""
    return path.with_name(f".{path.name}{_UNFINISHED}{_REMOVED}")


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors are" if len(names) > 1 else " is")


def on_meta(build: Callable[[], M]) -> M:
    """Construct a module without drawing or allocating its weights."""
    with torch.device("meta"):
        return build()
