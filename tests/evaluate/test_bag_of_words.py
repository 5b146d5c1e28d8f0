"""The counting baseline: what scikit-learn says, from the core install alone."""

import random

import pytest

from modernbert.evaluate.bag_of_words import STRENGTHS, bag_of_words

# Three classes: of two, scikit-learn has one vector of weights, and regularises it otherwise.
WORDS = {
    "town": ["street", "bus", "shop", "noise", "the"],
    "sea": ["wave", "ship", "salt", "sail", "the"],
    "hill": ["stone", "goat", "grass", "climb", "the"],
}


def drawn(count, seed):
    draw = random.Random(seed)
    names = [draw.choice(list(WORDS)) for _ in range(count)]
    noise = [word for words in WORDS.values() for word in words]
    return [(" ".join(draw.choices(WORDS[n], k=3) + draw.choices(noise, k=4)), n) for n in names]


def test_it_says_what_scikit_learn_says():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, validation, test = drawn(120, 0), drawn(40, 1), drawn(200, 2)
    said, strength = bag_of_words(train, validation, [t for t, _ in test])
    vectorizer = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = linear_model.LogisticRegression(C=strength, max_iter=1000)
    model.fit(vectorizer.fit_transform([t for t, _ in train]), [name for _, name in train])
    expected = model.predict(vectorizer.transform([t for t, _ in test]))
    assert sum(a == b for a, b in zip(said, expected, strict=True)) >= 198  # LBFGS ends where it likes
    assert strength in STRENGTHS


def test_texts_of_unknown_words_or_none_get_some_class():
    said, _ = bag_of_words(drawn(30, 0), drawn(10, 1), ["", "Ω", "zebra xylophone"])
    assert set(said) <= set(WORDS) and len(said) == 3


def test_scripts_without_spaces_are_counted_by_characters():
    train = [("这部电影很好看", "good"), ("电影很好", "good"), ("这部电影很难看", "bad"), ("太难看了", "bad")] * 3
    said, _ = bag_of_words(train, train[:4], ["真好看", "难看"])
    assert said == ["good", "bad"]
