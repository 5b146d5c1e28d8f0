"""What a phase reads: components, each a source or some of its documents, by weight."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import Field

from modernbert.settings import Settings


class Component(Settings):
    """A part of a mixture. A lone number is its weight."""

    source: str | None = None  # the component's own name if not given
    weight: float = Field(gt=0)  # share of the tokens, before weights are divided by their sum
    max_epochs: float | None = Field(None, gt=0)  # of the component within a phase; then the others take over
    min_tokens: int | None = Field(None, ge=1)  # only documents at least so long (without [CLS] and [SEP])
    max_tokens: int | None = Field(None, ge=1)  # only documents at most so long
    min_score: float | None = None  # only documents scored so, where the build kept scores

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_weight(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, int | float) else value
