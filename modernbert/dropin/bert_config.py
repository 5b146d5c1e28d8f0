"""A checkpoint's `config.json` as an object: the encoder's shape, fixed, and what a head answers, which may be changed.

`config.hidden_size`, `config.num_labels`, `config.id2label` and every other key of the file are attributes, by the names
that transformers has for them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from modernbert.disk import write_whole
from modernbert.errors import ConfigError
from modernbert.model import hub
from modernbert.model.config import ModernBertConfig
from modernbert.tasks.head import OWN, PROBLEM_TYPES
from modernbert.tasks.load import newest_checkpoint

_SHAPE = frozenset(f.name for f in dataclasses.fields(ModernBertConfig)) - {"extra"}
_LABELS = ("num_labels", "id2label", "label2id")
_DEFAULTS: Mapping[str, Any] = {
    "problem_type": None, "classifier_dropout": 0.0, "classifier_pooling": "cls", "sparse_prediction": False,
    "sparse_pred_ignore_index": -100, "output_hidden_states": False, "output_attentions": False, "return_dict": True,
}  # fmt: skip
"""What a head may be told, with transformers' defaults."""
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "problem_type": (None, *PROBLEM_TYPES.values()), "classifier_pooling": ("cls", "mean"),
    "output_attentions": (False, None),
}  # fmt: skip
_DROPOUTS = ("attention_dropout", "embedding_dropout", "mlp_dropout")


class ModernBERTConfig:
    """Attributes by the names of `config.json`.

    Args:
        values: keys of `config.json`, as ModernBERT-base has them where not given. `num_labels`, `id2label` and `label2id`
            follow from each other; unsaid there are two labels.

    Raises:
        ConfigError: a key that is not known, labels that contradict each other, or a value that is not computed.
    """

    model_type = "modernbert"

    def __init__(self, **values: Any) -> None:
        unknown = sorted(values.keys() - _SHAPE - set(_LABELS) - _DEFAULTS.keys() - set(_DROPOUTS))
        if unknown:
            raise ConfigError(f"{unknown[0]} is no setting of a ModernBERT; leave it out")
        self._take(values)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """Read a `config.json`, whose keys that mean nothing here are kept, with some settings changed."""
        known = (*_LABELS, *_DEFAULTS)
        unknown = sorted(name for name in changes if name not in (*known, *_DROPOUTS))
        if unknown:
            raise ConfigError(
                f"{unknown[0]}={changes[unknown[0]]!r} is no setting of a checkpoint; there are {', '.join(known)}"
            )
        if changes.keys() & set(_LABELS):
            values = {name: value for name, value in values.items() if name not in _LABELS}
        config = cls.__new__(cls)
        config._take({**values, **changes})
        return config

    @classmethod
    def from_pretrained(cls, folder_or_hub_name: str | Path, **changes: Any) -> Self:
        """The config of a checkpoint; `changes` take the place of what it says of labels and head.

        Raises:
            CheckpointError: no such checkpoint, or one of another model.
            ConfigError: a change that is not known, or labels that contradict each other.
        """
        folder = newest_checkpoint(hub.find_folder(folder_or_hub_name))
        config = cls.from_values(hub.read_config_values(folder), **changes)
        config.__dict__["name_or_path"] = str(folder_or_hub_name)
        return config

    def save_pretrained(self, folder: str | Path, architecture: str = "ModernBertModel") -> None:
        """Write `config.json`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(architecture), indent=2, sort_keys=True)
        write_whole(Path(folder, hub.CONFIG), text + "\n")

    def stored(self) -> ModernBertConfig:
        """The shape with all that `config.json` says beside it; what is transformers' default is left out, as there."""
        extra = dict(self.shape.extra)
        extra |= {name: self.__dict__[name] for name in _DEFAULTS if self.__dict__[name] != _DEFAULTS[name]}
        if self.id2label != _labels({}):
            extra["id2label"] = {str(index): name for index, name in self.id2label.items()}
            extra["label2id"] = self.label2id
        if self.problem_type is not None and OWN in extra:  # which says the same by another name, perhaps of before
            extra[OWN] = {name: value for name, value in extra[OWN].items() if name != "problem"}
        return self.shape.replace(extra=extra)

    def to_dict(self, architecture: str = "ModernBertModel") -> dict[str, Any]:
        """As `config.json` has it."""
        return self.stored().to_dict(architecture)

    def to_json_string(self) -> str:
        """The same as text; what training tools write to their logs."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def reshape(self, **changes: Any) -> None:
        """Follow a model whose weights were given another shape."""
        self.__dict__["shape"] = self.shape.replace(**changes)

    def copy(self) -> Self:
        """One that can be changed by itself."""
        return copy.deepcopy(self)

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        if number != self.num_labels:
            self.id2label = {index: f"LABEL_{index}" for index in range(number)}

    @property
    def label2id(self) -> dict[str, int]:
        """The other way round; follows from `id2label`."""
        return {name: index for index, name in self.id2label.items()}

    @label2id.setter
    def label2id(self, ids: Mapping[str, int]) -> None:
        self.id2label = {index: name for name, index in ids.items()}

    @property
    def use_return_dict(self) -> bool:
        """The older name of `return_dict`."""
        return self.return_dict

    def __getattr__(self, name: str) -> Any:
        shape = self.__dict__.get("shape")
        if shape is not None and not name.startswith("__"):
            if name in _SHAPE:
                return getattr(shape, name)
            if name in shape.extra:
                return shape.extra[name]
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SHAPE:
            raise ConfigError(
                f"{name} is fixed, as the weights are; make another ModernBERTConfig with {name}={value!r}"
            )
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ConfigError(f"{name}={value!r}; give one of {', '.join(map(repr, _CHOICES[name]))}")
        if name == "id2label":
            value = _numbered(value)
        object.__setattr__(self, name, value)

    def _take(self, values: Mapping[str, Any]) -> None:
        for name in _DROPOUTS:
            if values.get(name):
                raise ConfigError(f"{name}={values[name]}: only classifier_dropout is computed; set {name} to 0")
        mine = {*_LABELS, *_DEFAULTS}
        shape = ModernBertConfig.from_dict({name: value for name, value in values.items() if name not in mine})
        self.__dict__["shape"] = shape
        self.__dict__["name_or_path"] = ""
        self.id2label = _labels(values)
        for name, default in _DEFAULTS.items():
            setattr(self, name, values.get(name, default))


def refuse_unknown(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse arguments that a call does not know.

    Raises:
        ConfigError: there is one.
    """
    for name in sorted(set(given) - set(known)):
        raise ConfigError(f"{call}({name}=…) is not known here; there are {', '.join(sorted(known))}")


def _labels(values: Mapping[str, Any]) -> dict[int, str]:
    """The labels that some of the three keys say, all of which must agree."""
    number, names, ids = (values.get(name) for name in _LABELS)
    found = _numbered(names) if names else None
    if ids and not (names and len(ids) != len(found or ())):
        other = _numbered({index: name for name, index in ids.items()})
        if found is not None and found != other:
            raise ConfigError(f"id2label and label2id disagree: {found!r:.60} and {ids!r:.60}; give one of them")
        found = other
    if found is None:
        found = {index: f"LABEL_{index}" for index in range(2 if number is None else number)}
    if number is not None and number != len(found):
        raise ConfigError(f"num_labels={number} and {len(found)} label names; give as many names as labels")
    return found


def _numbered(names: Mapping[Any, Any]) -> dict[int, str]:
    try:
        found = {int(index): str(name) for index, name in sorted(names.items(), key=lambda item: int(item[0]))}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"id2label={names!r:.60}; give a dict of label numbers and names") from error
    if list(found) != list(range(len(found))):
        raise ConfigError(f"id2label has the numbers {list(found)!r:.60}; they must run from 0 without a gap")
    return found
