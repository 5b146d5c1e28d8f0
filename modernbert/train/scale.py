"""A published recipe → the same recipe for a small budget.

Published recipes take millions of tokens a step over thousands of billions. For a budget f times theirs

- phases keep their shares, and batch warm-ups and decays their shares of a phase;
- a step shrinks with √f (a batch grows with the square root of the budget: with base's 4.7 M tokens at 2 T, 2 M tokens
  give steps of some 5,000, where results/LOG.md found the best for a quickstart), to a hundredth of its phase at most;
- learning-rate warm-up shrinks with √f, to a tenth of its phase at most: a short run needs a longer one;
- a micro-batch is no larger than a step, nor than 16,384 tokens or 8 sequences, as small budgets run on small machines;
- an evaluation is no larger than a thousandth of the budget (and 10,000 tokens), with one every 2.5 % below a tenth of
  the published budget, and a checkpoint every 5 %.

Rates, lengths and masking stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modernbert.errors import ConfigError
from modernbert.settings import override, read_recipe
from modernbert.train.recipe import PretrainRun, tokens_of

_KEY = "scale_to"
_MICRO_BATCH_TOKENS = 16_384


def read_run(recipe: str | Path, settings: Iterable[str] = ()) -> PretrainRun:
    """The run of a recipe's name or file under `key=value` changes; `scale_to=TOKENS` shrinks the recipe first.

    Raises:
        ConfigError: no such recipe, or a setting at fault.
    """
    values = read_recipe(recipe)
    changes = list(settings)
    scales = [change for change in changes if change.partition("=")[0].strip() == _KEY]
    wanted = override({_KEY: values.pop(_KEY, None)}, scales)[_KEY]
    if wanted is not None:
        try:
            values = scaled(values, wanted)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            PretrainRun.parse(values)  # says what is wrong with it
            raise ConfigError(f"{_KEY}={wanted}: {recipe} cannot be scaled ({error}); write its budgets out") from error
    return PretrainRun.parse(override(values, [change for change in changes if change not in scales]))


def scaled(values: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Plain values of a recipe, for so many tokens in all.

    Raises:
        ConfigError: a number of tokens that makes no sense, or leaves a phase less than one sequence.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"{_KEY}={tokens!r} is no number of tokens; write {_KEY}=1_000_000_000")
    loop, phases = values.get("loop", {}), values.get("phases", [])
    whole = loop.get("tokens") or 0
    budgets = [tokens_of(phase.get("tokens", "100%"), whole) for phase in phases]
    factor = tokens / max(1, sum(budgets))
    smaller = [_scaled_phase(phase, budget, factor) for phase, budget in zip(phases, budgets, strict=True)]
    looks: dict[str, Any] = {
        "eval_size_tokens": min(loop.get("eval_size_tokens", 200_000), max(10_000, tokens // 1000))
    }
    if factor < 0.1:
        looks |= {"eval_tokens": "2.5%", "checkpoint_tokens": "5%"}
    return {**values, "loop": {k: v for k, v in loop.items() if k != "tokens"} | looks, "phases": smaller}


def _scaled_phase(phase: dict[str, Any], old_budget: int, factor: float) -> dict[str, Any]:
    root, length = math.sqrt(factor), phase["sequence_length"]
    budget = round(old_budget * factor)
    if budget < length:
        raise ConfigError(
            f"{_KEY} leaves phase {phase['name']} {budget:,} tokens, less than one sequence of {length:,}; raise it "
            f"{math.ceil(length / max(budget, 1)):,}-fold, or write a recipe without that phase"
        )
    step = min(max(length, round(phase["tokens_per_step"] * root)), max(length, budget // 100))
    micro = max(length, min(phase["micro_batch_tokens"], max(_MICRO_BATCH_TOKENS, 8 * length), step))
    step = micro * max(1, round(step / micro))
    result = {**phase, "tokens": budget, "tokens_per_step": step, "micro_batch_tokens": micro}
    start = result.pop("tokens_per_step_start", None)
    start = micro * max(1, round(start * root / micro)) if start else step
    result.pop("batch_warmup_tokens", None)
    if start < step:
        grown = round(tokens_of(phase.get("batch_warmup_tokens", 0), old_budget) * factor)
        result |= {"tokens_per_step_start": start, "batch_warmup_tokens": grown}
    decay = round(tokens_of(phase.get("decay_tokens", 0), old_budget) * factor)
    warmup = tokens_of(phase.get("warmup_tokens", 0), old_budget)
    warmup = round(min(warmup * root, 0.1 * budget, budget - decay))
    return {**result, "decay_tokens": decay, "warmup_tokens": warmup}
