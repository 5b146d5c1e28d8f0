"""A file that `torch.save` wrote → its tensors, mappings, numbers and texts, with none of its code run.

Every class but tensors is replaced by a stand-in that takes everything and does nothing, so objects of libraries that are
not installed are no hindrance, and a file made to do harm does none. Tensors are mapped from the file, not read.
"""

from __future__ import annotations

import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modernbert.errors import CheckpointError


def read_pickle(path: Path) -> Mapping[str, Any]:
    """Open a file of `torch.save`, without its objects.

    Returns:
        What it holds, where that is a mapping, else an empty one.

    Raises:
        CheckpointError: missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a checkpoint such as ep0-ba272000-rank0.pt")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no file that torch.save of PyTorch 1.6 or newer writes; fetch it again")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch or copy it again") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript program, which is not run; give a Composer checkpoint")
    reader = types.ModuleType("tensors_only")  # `weights_only` would refuse the whole file for one other class
    vars(reader)["Unpickler"] = _TensorsOnly
    try:
        whole = torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=reader)
    except Exception as error:  # a pickle that is not what it seems can fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({reason}); fetch or copy it again") from error
    return whole if isinstance(whole, Mapping) else {}


class _Inert:
    """Stands for whatever a pickle builds from a class that is not loaded: takes everything, does nothing."""

    def __new__(cls, *_args: Any, **_named: Any) -> _Inert:
        return super().__new__(cls)

    def _nothing(self, *_args: Any, **_named: Any) -> None:
        return None

    __init__ = __setstate__ = __setitem__ = append = extend = add = __call__ = _nothing


class _TensorsOnly(pickle.Unpickler):
    _LOADED: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Never import anything: what is not needed for tensors is a stand-in."""
        return self._LOADED.get((module_name, global_name), _Inert)
