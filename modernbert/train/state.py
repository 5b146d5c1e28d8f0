"""Optimizer ↔ `state/` of a checkpoint: sharded tensors through PyTorch's DCP, small numbers as JSON.

    state/shard-00001-model-00001-of-00001.safetensors   averages, each rank's part
    state/optimizer.json                                 steps, rates, scalars

Written by any number of ranks, read by any other: DCP cuts tensors anew. Its safetensors form is taken, as its own
would have a reader unpickle what a stranger wrote. Price: two float32 numbers a weight, once, whatever the ranks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from modernbert.errors import CheckpointError
from modernbert.ranks import Ranks

NUMBERS = "optimizer.json"
# One process is nothing to warn of.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def begin_save(module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, ranks: Ranks) -> Callable[[], None]:
    """Copy an optimizer's state and begin to write it; training may go on.

    Args:
        module: whose parameters it is over.
        optimizer: at least one step old, or new.
        folder: of the checkpoint's state; the same on all ranks.
        ranks: which write together.

    Returns:
        What waits until all parts are written (DCP ends with a word from the first rank to all).
    """
    import torch.distributed.checkpoint as dcp  # a second to import
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    tensors, numbers = _parted(module, optimizer)
    text = json.dumps(numbers) + "\n"
    writing: Future[Any] | None = None
    if tensors:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        is_alone = ranks.saves is None
        writing = dcp.async_save(tensors, storage_writer=writer, process_group=ranks.saves, no_dist=is_alone)  # type: ignore[assignment]

    def finish() -> None:
        if writing is not None:
            try:
                writing.result()
            except dcp.CheckpointException as error:  # a BaseException; of any rank
                cause, _ = next(iter(error.failures.values()))
                raise OSError(getattr(cause, "errno", None) or errno.EIO, _in_short(cause)) from error
        if ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NUMBERS).write_text(text)

    return finish


def load(module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, ranks: Ranks) -> None:
    """Bring an optimizer's state back, cut as this run's weights are.

    Args:
        module: whose parameters it is over.
        optimizer: new, or to be set back.
        folder: of the checkpoint's state.
        ranks: which read together.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with ranks.agreeing(), _saying_unreadable(folder):
        state, tensors = _template(module, optimizer, folder)
    # DCP fails on all ranks where it fails on one, so that none waits for another in here.
    with ranks.agreeing(), _saying_unreadable(folder):
        if tensors:
            reader = HuggingFaceStorageReader(str(folder))
            # Not `saves`: a save may be under way there.
            dcp.load(tensors, storage_reader=reader, process_group=ranks.steps, no_dist=ranks.steps is None)
    with ranks.agreeing():
        try:
            optimizer.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{folder} does not fit this model ({error}); start from weights alone") from error


@contextlib.contextmanager
def _saying_unreadable(folder: Path) -> Iterator[None]:
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except (*_UNREADABLE, CheckpointException) as error:
        raise CheckpointError(
            f"{folder} cannot be read ({type(error).__name__}: {_in_short(error)}); "
            f"delete {folder.parent.name} to go on from the checkpoint before"
        ) from error


_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AssertionError, SafetensorError)


def _named(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, str, nn.Parameter]]:
    """(index in the optimizer's state dict, name, parameter)."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for index, parameter in enumerate(parameters):
        yield index, names[id(parameter)], parameter


def _parted(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of a parameter's shape, for DCP, and all else, for JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Any] = {}
    small: dict[str, dict[str, Any]] = {}
    for index, name, parameter in _named(module, optimizer):
        for key, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                tensors[f"{name}.{key}"] = value
            else:
                small.setdefault(name, {})[key] = _plain(value)
    groups = [
        {key: _plain(value) for key, value in group.items() if key != "params"} for group in state["param_groups"]
    ]
    return tensors, {"state": small, "groups": groups, "tensors": sorted(tensors)}


def _template(
    module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state dict for `optimizer`, and those of its tensors that are to be read, cut as its parameters are."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    numbers = json.loads((folder / NUMBERS).read_text())
    named = list(_named(module, optimizer))
    state: dict[int, dict[str, Any]] = {}
    tensors: dict[str, Any] = {}
    there: Mapping[str, Any] = {}
    if any(folder.glob("*.safetensors")):
        there = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    absent = sorted(set(numbers.get("tensors", ())) - there.keys())
    if absent:
        raise ValueError(
            f"parts of it are missing, with {absent[0]}" + (f" and {len(absent) - 1} more" * (len(absent) > 1))
        )
    for index, name, parameter in named:
        for full in (full for full in there if full.rpartition(".")[0] == name):
            if there[full].size != parameter.shape:
                raise ValueError(f"{full} is of shape {tuple(there[full].size)}, not {tuple(parameter.shape)}")
            tensors[full] = torch.zeros_like(parameter.detach(), memory_format=torch.preserve_format)
            state.setdefault(index, {})[full.rpartition(".")[2]] = tensors[full]
    unknown = numbers["state"].keys() - {name for _, name, _ in named}
    if unknown or len(numbers["groups"]) != len(optimizer.param_groups):
        raise ValueError(f"it is of another model ({', '.join(sorted(unknown)[:2]) or 'other groups'})")
    for index, name, _ in named:
        values = {key: _value(value) for key, value in numbers["state"].get(name, {}).items()}
        if values or index in state:
            state[index] = {**state.get(index, {}), **values}
    groups = [
        {**{key: _value(value) for key, value in theirs.items()}, "params": ours["params"]}
        for theirs, ours in zip(numbers["groups"], optimizer.state_dict()["param_groups"], strict=True)
    ]
    return {"state": state, "param_groups": groups}, tensors


def _in_short(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:120]


def _plain(value: Any) -> Any:
    """A number as it is, a small tensor as what makes it again."""
    if not isinstance(value, Tensor):
        return value
    return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}


def _value(plain: Any) -> Any:
    if not isinstance(plain, Mapping):
        return plain
    return torch.tensor(plain["tensor"], dtype=getattr(torch, plain["dtype"]))
