"""The language filter, on a sentence each."""

import builtins

import pytest

from modernbert.errors import ConfigError
from modernbert.text.language import LanguageFilter, sample

ENGLISH = "The committee met on Tuesday and decided to postpone the vote until all of the reports had been read."
GERMAN = "Der Ausschuss trat am Dienstag zusammen und verschob die Abstimmung, bis alle Berichte gelesen waren."
CHINESE = "委员会于星期二开会，决定推迟表决，直到所有报告都已阅读完毕。"


@pytest.fixture(scope="module")
def english():
    return LanguageFilter(["en"], 0.5)


def test_the_language_asked_for_passes_and_others_are_named(english):
    assert english.refuses(ENGLISH) is None
    assert english.refuses(GERMAN).startswith("de ")
    assert english.refuses(CHINESE) is not None
    assert english.refuses("") is not None


def test_any_of_several_languages_passes():
    both = LanguageFilter(["de", "zh", "wuu"], 0.8)
    assert both.refuses(GERMAN) is None and both.refuses(CHINESE) is None
    assert both.refuses(ENGLISH).startswith("en ")


def test_a_title_page_in_another_language_does_not_decide(english):
    assert english.refuses(GERMAN + "\n" + ENGLISH * 40) is None


def test_a_sample_is_short_and_from_all_over():
    text = "a" * 10_000 + "b" * 10_000 + "c" * 10_000
    assert len(sample(text)) < 700 and set(sample(text)) == set("abc\n")
    assert sample(" short ") == "short"


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(ConfigError, match=r"language=english is not known; the filter knows .*\ben\b"):
        LanguageFilter(["english"], 0.5)
    with pytest.raises(ConfigError, match=r"language_confidence=2"):
        LanguageFilter(["en"], 2)


def test_a_missing_library_is_one_line(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: missing() if "langid" in name else real(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"pip install 'modernbert\[language\]'"):
        LanguageFilter(["en"], 0.5)


def missing():
    raise ImportError
