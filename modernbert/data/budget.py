"""A mixture and a budget of tokens → how often each component is read, and what of that deserves a word.

Worked out from sums over documents, without reading any: the same arithmetic as the stream's, in the limit of many
pieces. So a mixture that cannot last is refused before a run begins.
"""

from __future__ import annotations

import numpy as np

from modernbert.data.mix import ENDLESS, Mixture
from modernbert.data.pack import NUM_SPECIALS
from modernbert.errors import DataError
from modernbert.text.shards import long_share as share_in_longer

_SURE = 0.99  # of what a part of an epoch is worked out to hold


def epochs(mixture: Mixture, tokens: int) -> dict[str, float]:
    """How often each component is read, by name, when a phase reads so many tokens (fewer where caps end it)."""
    read_C, _ = _read(mixture, tokens)
    return dict(zip(mixture.names, (read_C / mixture.num_tokens_C).tolist(), strict=True))


def epochs_by_source(mixture: Mixture, tokens: int) -> dict[str, float]:
    """How often each source is read on average, by whichever components, when a phase reads so many tokens."""
    read: dict[str, float] = {}
    for component, (name, times) in enumerate(zip(mixture.sources, epochs(mixture, tokens).values(), strict=True)):
        share = float(mixture.document_lengths(component).sum() / mixture.shards[name].num_tokens)
        read[name] = read.get(name, 0.0) + times * share
    return read


def check_budget(mixture: Mixture, tokens: int) -> None:
    """Raise DataError where max_epochs leave fewer tokens than a phase wants.

    Pieces of a part of an epoch need not have the mean length of all, so a component that ends in one counts 1 % less.
    A phase's last step may begin just below its budget, so `tokens` should be the budget and one step.
    """
    ends_in_a_part_C = mixture.caps_C % mixture.num_pieces_C != 0
    most = (_capped_tokens_C(mixture) * np.where(ends_in_a_part_C, _SURE, 1.0)).sum()
    if most < tokens:
        caps = ", ".join(
            f"{name}={part.max_epochs:g}" for name, part in zip(mixture.names, mixture.components, strict=True)
            if part.max_epochs is not None
        )  # fmt: skip
        raise DataError(
            f"the mixture holds {int(most):,} tokens under its max_epochs ({caps}) and the phase wants {tokens:,}; "
            "raise max_epochs, add a source, or lower the phase's tokens"
        )


def cap_remarks(mixture: Mixture, tokens: int) -> list[str]:
    """A sentence for each component that ends before the phase of so many tokens does."""
    read_C, ends_C = _read(mixture, tokens)
    return [
        f"{name} has been read max_epochs={part.max_epochs:g} times after {ends / tokens:.0%} of the phase and gives "
        f"{share:.1%} of its tokens instead of {weight:.1%}; the other components take over."
        for name, part, ends, share, weight in zip(
            mixture.names, mixture.components, ends_C, read_C / read_C.sum(), mixture.shares_C, strict=True
        )
        if ends < tokens
    ]


def long_share(mixture: Mixture, context: int, tokens: int) -> float:
    """Which share of the so many tokens that a phase reads lies in documents longer than an older context.

    Args:
        mixture: of the phase.
        context: the sequence length before, [CLS] and [SEP] included.
        tokens: the phase's budget.
    """
    read_C, _ = _read(mixture, tokens)
    lengths_C = [mixture.document_lengths(component) for component in range(len(mixture.names))]
    long_C = [share_in_longer(lengths, context - NUM_SPECIALS) for lengths in lengths_C]
    return float(np.dot(read_C / read_C.sum(), long_C))


def long_share_remark(mixture: Mixture, context: int, tokens: int, least: float) -> str | None:
    """A sentence where less than a wanted share of tokens lies in documents longer than the old context."""
    share = long_share(mixture, context, tokens)
    if share >= least:
        return None
    return (
        f"Only {share:.1%} of the tokens lie in documents longer than the {context:,} tokens of the phase before (wanted: "
        f"{least:.0%}), so little is to be learnt about longer contexts; {_remedy(mixture, context)}."
    )


def _remedy(mixture: Mixture, context: int) -> str:
    lengths = {name: shards.lengths for name, shards in mixture.shards.items()}
    long = {name: int(sizes[sizes >= context].sum()) for name, sizes in lengths.items()}
    source = max(long, key=lambda name: long[name])
    if not long[source]:
        return "add long documents, for the sources hold none"
    return (
        "give long documents more weight, with a component such as "
        f"mixture.long = {{source = {source!r}, min_tokens = {context}, weight = …}}"
    )


def _capped_tokens_C(mixture: Mixture) -> np.ndarray:
    tokens_C = mixture.caps_C * (mixture.num_tokens_C / mixture.num_pieces_C)
    return np.where(mixture.caps_C == ENDLESS, np.inf, tokens_C)


def _read(mixture: Mixture, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that each component gives of a budget, and at how many tokens in all it ends (infinity if it does not)."""
    caps_C = _capped_tokens_C(mixture)
    read_C, ends_C = np.zeros(len(caps_C)), np.full(len(caps_C), np.inf)
    left = float(tokens)
    while left > 0 and (live_C := np.isinf(ends_C)).any():
        shares_C = np.where(live_C, mixture.shares_C, 0) / mixture.shares_C[live_C].sum()
        until_C = np.full(len(caps_C), np.inf)
        until_C[live_C] = (caps_C - read_C)[live_C] / shares_C[live_C]
        first = int(np.argmin(until_C))
        stretch = min(left, until_C[first])
        read_C += shares_C * stretch
        left -= stretch
        if stretch == until_C[first]:
            read_C[first], ends_C[first] = caps_C[first], tokens - left
    return read_C, ends_C
