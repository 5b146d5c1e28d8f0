"""Right answers and given ones → exact match and F1: SQuAD's way, and for Chinese CMRC's.

    answer → normalised → words (Chinese: characters) → equal? how many in common? → the best over the right answers

SQuAD: lower case, no punctuation, no articles; F1 of the words in common, in any order; where no answer is right, only none
is. CMRC 2018: the characters in common are those of the longest run that both have. The script of the right answers, and
where they have no letters that of the question, says which; runs of Latin script inside Chinese are cut into words at
spaces and punctuation, where CMRC's script takes NLTK's tokenizer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from modernbert.text.examples import AnswerExample

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_IS_HAN = re.compile(f"[{_HAN}]")
_SKIPPED_ZH = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_PIECE_ZH = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+(?:[.,'][^\W{_HAN}]+)*|[^\w\s]")


def answer_scores(examples: Sequence[AnswerExample], given: Sequence[str | None]) -> dict[str, float]:
    """How good answers are, as shares of 1.

    Args:
        examples: questions with their right answers; none at all where the passage has none.
        given: the answer to each; None where the model says that there is none.

    Returns:
        `f1` and `exact_match` over all questions. Where some have no answer also `no_answer_accuracy`, the share of these
        that were given none, and `answered_f1` and `answered_exact_match` over the others (0 where there are none).
    """
    exact, f1, has_answer = [], [], []
    for example, answer in zip(examples, given, strict=True):
        right = [text for text, _ in example.answers or ()]
        chinese = is_chinese("".join(right)) or (not _has_letters(right) and is_chinese(example.question))
        exact.append(exact_match(right, answer, chinese=chinese))
        f1.append(overlap_f1(right, answer, chinese=chinese))
        has_answer.append(bool(right))
    scores = {"f1": sum(f1) / len(f1), "exact_match": sum(exact) / len(exact)}
    if not all(has_answer):
        without = [value for value, has in zip(exact, has_answer, strict=True) if not has]
        scores["no_answer_accuracy"] = sum(without) / len(without)
        for name, values in (("answered_f1", f1), ("answered_exact_match", exact)):
            kept = [value for value, has in zip(values, has_answer, strict=True) if has]
            scores[name] = sum(kept) / len(kept) if kept else 0.0
    return scores


def exact_match(right: Sequence[str], given: str | None, *, chinese: bool = False) -> float:
    """1 if an answer is one of the right ones once both are normalised, else 0."""
    plain = _plain_zh if chinese else plain_answer
    return float(any(plain(given or "") == plain(answer) for answer in _meaningful(right, chinese=chinese)))


def overlap_f1(right: Sequence[str], given: str | None, *, chinese: bool = False) -> float:
    """The best F1 of an answer's words, or characters, over the right ones."""
    of_one = _f1_zh if chinese else _f1
    return max(of_one(answer, given or "") for answer in _meaningful(right, chinese=chinese))


def is_chinese(text: str) -> bool:
    """Whether there are Chinese characters in a text."""
    return _IS_HAN.search(text) is not None


def plain_answer(text: str) -> str:
    """As SQuAD compares answers: lower case, without punctuation, articles and surplus spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _plain_zh(text: str) -> str:
    return text.lower().strip().translate(_SKIPPED_ZH)


def _meaningful(right: Sequence[str], *, chinese: bool) -> list[str]:
    """Those of which normalising leaves anything; as SQuAD 2.0 has it, no answer is right where none is left."""
    plain = _plain_zh if chinese else plain_answer
    return [answer for answer in right if plain(answer)] or [""]


def _has_letters(texts: Sequence[str]) -> bool:
    return any(character.isalpha() for text in texts for character in text)


def _f1(right: str, given: str) -> float:
    ours, theirs = plain_answer(given).split(), plain_answer(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return _harmonic((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs))


def _f1_zh(right: str, given: str) -> float:
    ours, theirs = _PIECE_ZH.findall(_plain_zh(given)), _PIECE_ZH.findall(_plain_zh(right))
    if not ours or not theirs:
        return float(ours == theirs)
    return _harmonic(
        SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size, len(ours), len(theirs)
    )


def _harmonic(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs)
