"""TOML file or recipe name + `key=value` overrides → one frozen, checked settings object.

Unknown keys, values of the wrong kind and impossible combinations are refused before any work, in one line.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

import pydantic

from modernbert.errors import ConfigError


class Settings(pydantic.BaseModel):
    """Base of every settings class: frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Check plain values.

        Raises:
            ConfigError: naming the first key at fault, its value and what would do.
        """
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise ConfigError(_first_fault(cls, error)) from error


def read_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """A TOML file, or a recipe of the package by its name.

    Raises:
        ConfigError: neither exists, or the file is not TOML.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file")
        try:
            text, origin = path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is no UTF-8 text ({error.reason}); save it as UTF-8") from error
    else:
        known = recipe_names()
        if str(name_or_path) not in known:
            hint = _closest(str(name_or_path), known)
            raise ConfigError(f"{name_or_path}: no such recipe or file; {hint}recipes are {', '.join(known)}")
        origin = f"{name_or_path}.toml"
        text = (resources.files("modernbert") / "recipes" / origin).read_text(encoding="utf-8")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not valid TOML: {error}") from error


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("modernbert") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments; a number in the path indexes a list (`phases.0.lr=1e-3`).

    Values are read as TOML (`1_000`, `true`, `[1, 2]`, `"text"`), and as plain text where they are none.

    Raises:
        ConfigError: an assignment without `=`, or a path through something that has no keys.
    """
    result = _copy(values)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"{assignment!r} is no setting; write section.key=value")
        *parents, last = path.strip().split(".")
        node: Any = result
        for key in parents:
            node = node.setdefault(key, {}) if isinstance(node, dict) else _item(node, key, path)
        if isinstance(node, dict):
            node[last] = _value(text)
        else:
            _item(node, last, path)
            node[int(last)] = _value(text)
    return result


def _item(node: Any, key: str, path: str) -> Any:
    if not isinstance(node, list):
        raise ConfigError(f"{path}: there is nothing below {node!r}")
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"{path}: {key!r} is no index of a list of {len(node)}; count from 0")
    return node[int(key)]


def _copy(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copy(value) for key, value in values.items()}
    return [_copy(value) for value in values] if isinstance(values, list) else values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _first_fault(cls: type[pydantic.BaseModel], error: pydantic.ValidationError) -> str:
    fault = error.errors()[0]
    # pydantic names the branch of a union after the key; no setting has such a name.
    where = ".".join(str(part) for part in fault["loc"] if part not in ("int", "str", "constrained-int"))
    if fault["type"] == "extra_forbidden":
        owner = _owner(cls, fault["loc"][:-1])
        known = list(owner.model_fields) if owner else []
        hint = _closest(str(fault["loc"][-1]), known)
        return f"{where}: unknown key; {hint}known here: {', '.join(known)}"
    if fault["type"] == "missing":
        section = _owner(cls, fault["loc"])
        required = [name for name, field in section.model_fields.items() if field.is_required()] if section else []
        where = ".".join([where, *required[:1]])
        return f"{where}: not given; add {where}=… to the command or the recipe"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if isinstance(fault["input"], dict):  # a combination: the message names its values itself
        return f"{where}: {message}" if where else message
    return f"{where}={fault['input']!r}: {message}"


def _owner(cls: Any, path: Iterable[Any]) -> type[pydantic.BaseModel] | None:
    """The settings class at a path, through lists and optionals."""
    for part in path:
        if isinstance(part, int):
            continue
        cls = cls.model_fields[part].annotation
        while typing.get_origin(cls) is not None or isinstance(cls, types.UnionType):
            cls = next((a for a in typing.get_args(cls) if a is not type(None)), None)
    return cls if isinstance(cls, type) and issubclass(cls, pydantic.BaseModel) else None


def _closest(key: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {matches[0]!r}? " if matches else ""
