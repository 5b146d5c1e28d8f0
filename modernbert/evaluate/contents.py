"""What a checkpoint folder holds, as far as it can be read, and what was found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tokenizers import Tokenizer

from modernbert.model.config import ModernBertConfig


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: Literal["ok", "warning", "error"]
    text: str


class Header(NamedTuple):
    """What a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str


@dataclass
class Contents:
    """What a checkpoint folder holds, as far as it can be read."""

    folder: Path
    values: dict[str, Any] = field(default_factory=dict)  # config.json
    config: ModernBertConfig | None = None
    tensors: dict[str, Header] = field(default_factory=dict)  # by their names in a model with a head
    tokenizer: Tokenizer | None = None
    tokenizer_values: Mapping[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    findings: list[Finding] = field(default_factory=list)

    @property
    def architecture(self) -> str | None:
        """The class that config.json names; None where it names none."""
        named = self.values.get("architectures")
        first = named[0] if isinstance(named, list) and named else None
        return first if isinstance(first, str) else None

    def ok(self, text: str) -> None:
        """Looked at and in order."""
        self.findings.append(Finding("ok", text))

    def warn(self, text: str) -> None:
        """Some reader answers worse."""
        self.findings.append(Finding("warning", text))

    def error(self, text: str) -> None:
        """A reader fails or answers wrongly."""
        self.findings.append(Finding("error", text))
