"""Token ids → corrupted ids and labels: masked language modelling, 80 / 10 / 10 (arXiv 1810.04805).

Of the tokens chosen at the given rate 80 % become [MASK], 10 % a random token, 10 % stay. Special and unused
ids are never chosen and never drawn. The choice depends on (seed, position in the stream) only.
"""

from __future__ import annotations

import numpy as np

from modernbert.batch import IGNORE
from modernbert.text.tokenizer import SpecialIds


class Masker:
    """The masking of one vocabulary.

    Args:
        special: the tokenizer's special ids.
        vocab_size: ids in all.
    """

    def __init__(self, special: SpecialIds, vocab_size: int) -> None:
        self._mask_id = special.mask
        self._ordinary_V = np.ones(vocab_size, dtype=bool)
        self._ordinary_V[[i for i in special.never_masked_or_drawn if i < vocab_size]] = False
        self._drawable = np.flatnonzero(self._ordinary_V)

    def __call__(self, ids: np.ndarray, rate: float, seed: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Corrupted ids and labels (`IGNORE` where nothing was chosen), both int64.

        Args:
            ids: one sequence.
            rate: share of its ordinary tokens that is chosen; what a lower rate chooses, a higher one chooses too.
            seed: of the run.
            position: in the stream.
        """
        random = np.random.Generator(np.random.Philox(key=[seed, position]))
        where = random.random((2, len(ids)))
        drawn = self._drawable[random.integers(len(self._drawable), size=len(ids))]
        chosen = (where[0] < rate) & self._ordinary_V[ids]
        corrupted = np.where(where[1] < 0.8, self._mask_id, np.where(where[1] < 0.9, drawn, ids))
        return np.where(chosen, corrupted, ids), np.where(chosen, ids, IGNORE)
