"""TOML file or recipe name + `key=value` overrides → one frozen, checked settings object.

A file that says `extends = "base"` edits that recipe: its tables are laid over the other's, and entries of a list of
tables that have a `name` over those of the same name. Unknown keys, values of the wrong kind and impossible
combinations are refused before any work, in one line.
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
    """A TOML file, or a recipe of the package by its name, laid over what it `extends`.

    Raises:
        ConfigError: neither exists, the file is not TOML, or it extends itself.
    """
    return _read(name_or_path, ())


def _read(name_or_path: str | Path, extended_by: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file")
        try:
            text, origin = path.read_text(encoding="utf-8"), str(path.resolve())
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
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not valid TOML: {error}") from error
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if origin in extended_by or not isinstance(parent, str):
        raise ConfigError(f"{origin} extends {parent!r}, which leads in a circle or is no name; name another recipe")
    beside = path.parent / parent if parent.endswith(".toml") else parent
    return _laid_over(_read(beside, (*extended_by, origin)), values)


def _laid_over(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _laid_over(below[key], value) if key in below else value for key, value in above.items()}
    if _named(below) and _named(above):
        entries = {entry["name"]: entry for entry in below}
        changes = {entry["name"]: entry for entry in above}
        # The order of whichever list names the other's entries too; new ones come last.
        names = changes if entries.keys() <= changes.keys() else entries | changes
        return [_laid_over(entries.get(name, {}), changes.get(name, {})) for name in names]
    return above


def _named(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(entry, dict) and "name" in entry for entry in values)


def without_none(values: Any) -> Any:
    """Plain values for a TOML file, which has no null: what is None is what is not given."""
    if isinstance(values, dict):
        return {key: without_none(value) for key, value in values.items() if value is not None}
    return [without_none(value) for value in values if value is not None] if isinstance(values, list) else values


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("modernbert") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments; a name or a number finds an entry of a list (`phases.stable.lr=1e-3`).

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
            node = node.setdefault(key, {}) if isinstance(node, dict) else node[_index(node, key, path)]
        node[last if isinstance(node, dict) else _index(node, last, path)] = _value(text)
    return result


def _index(node: Any, key: str, path: str) -> int:
    if not isinstance(node, list):
        raise ConfigError(f"{path}: there is nothing below {node!r}")
    names = [entry["name"] for entry in node] if _named(node) else []
    if key in names:
        return names.index(key)
    if not key.isdecimal() or int(key) >= len(node):
        known = f"; it has {', '.join(names)}" if names else ""
        raise ConfigError(f"{path}: {key!r} is no index of a list of {len(node)}{known}; count from 0")
    return int(key)


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
        fields = section.model_fields if section else {}
        first = [*(name for name, field in fields.items() if field.is_required()), *fields][:1]
        where = ".".join([where, *first])
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
