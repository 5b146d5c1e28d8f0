"""Texts and their classes → what counting words alone would say: the baseline that a fine-tuned encoder has to beat.

    words and pairs of neighbours → TF-IDF, each text of length one → multinomial logistic regression → classes

As scikit-learn's TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True) and LogisticRegression do it, in some lines of PyTorch,
so that it needs no extra. Of scripts without spaces between words each character is a word. The strength of the regularisation
is the one best on validation texts. Price: seconds for a thousand texts, half a minute for ten thousand; memory for some 30
numbers for each term and class (2 GB for a million terms and 20 classes).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.text.words import UNSPACED

# Of scripts with spaces scikit-learn's words: two characters or more.
_WORD = re.compile(rf"[{UNSPACED}]|(?<![^\W{UNSPACED}])[^\W{UNSPACED}]{{2,}}")
METHOD = "words and pairs of neighbours, of unspaced scripts characters; TF-IDF; logistic regression"
STRENGTHS = (1.0, 10.0, 100.0)  # C of scikit-learn: the larger, the less regularised
_STEPS = 100


def bag_of_words(
    train: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]], texts: Sequence[str]
) -> tuple[list[str], float]:
    """Learn from (text, class) pairs, and answer for other texts.

    Returns:
        A class for each text, and the strength C that was best on the validation pairs.
    """
    terms = _Terms([text for text, _ in train])
    classes = sorted({name for _, name in train})
    targets_B = torch.tensor([classes.index(name) for _, name in train])
    x_BV, held_BV = (terms.vectors([text for text, _ in part]) for part in (train, validation))
    best: tuple[int, float, tuple[Tensor, Tensor]] | None = None
    for strength in STRENGTHS:  # of equals the first, which is regularised most
        weights = _fit(x_BV, targets_B, len(classes), strength)
        said = _classes(held_BV, weights, classes)
        right = sum(a == b for a, (_, b) in zip(said, validation, strict=True))
        if best is None or right > best[0]:
            best = right, strength, weights
    assert best is not None
    return _classes(terms.vectors(texts), best[2], classes), best[1]


class _Terms:
    """The vocabulary of some texts, with the weight of each term: rare ones count more."""

    def __init__(self, texts: Sequence[str]) -> None:
        in_texts = Counter(term for text in texts for term in set(_terms_of(text)))
        self.places = {term: place for place, term in enumerate(in_texts)}
        counts_V = torch.tensor(list(in_texts.values()), dtype=torch.float32)
        self.idf_V = ((1 + len(texts)) / (1 + counts_V)).log() + 1

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(B, V), sparse, each row of length one, or zero where no term is known."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counts = Counter(term for term in _terms_of(text) if term in self.places)
            places = torch.tensor([self.places[term] for term in counts], dtype=torch.int64)
            weights = (1 + torch.tensor(list(counts.values()), dtype=torch.float32).log()) * self.idf_V[places]
            rows += [row] * len(places)
            columns.append(places)
            values.append(F.normalize(weights, dim=0))
        index = torch.stack([torch.tensor(rows, dtype=torch.int64), torch.cat(columns or [torch.empty(0).long()])])
        return torch.sparse_coo_tensor(
            index, torch.cat(values), (len(texts), len(self.places)), check_invariants=True
        ).coalesce()


def _terms_of(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [*words, *(" ".join(pair) for pair in itertools.pairwise(words))]


def _fit(x_BV: Tensor, targets_B: Tensor, num_classes: int, strength: float) -> tuple[Tensor, Tensor]:
    weights_VC = torch.zeros(x_BV.shape[1], num_classes, requires_grad=True)
    bias_C = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_VC, bias_C], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        fit = F.cross_entropy(torch.sparse.mm(x_BV, weights_VC) + bias_C, targets_B, reduction="sum")
        value = strength * fit + 0.5 * weights_VC.square().sum()
        value.backward()
        return value.item()

    optimizer.step(loss)
    return weights_VC.detach(), bias_C.detach()


def _classes(x_BV: Tensor, weights: tuple[Tensor, Tensor], classes: list[str]) -> list[str]:
    return [classes[place] for place in (torch.sparse.mm(x_BV, weights[0]) + weights[1]).argmax(1).tolist()]
