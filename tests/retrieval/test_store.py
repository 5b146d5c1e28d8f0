"""A store of passages: what is put in is found, what is replaced is gone, and fusion is its definition."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import ConfigError, DataError
from modernbert.retrieval.store import About, Passage, Store, filter_of, rank_fusion
from modernbert.retrieval.terms import terms_of

pytest.importorskip("lancedb")
ABOUT = About(model="m", fingerprint={"model": "aa", "pooling": "mean"}, dimensions=8, likeness="cosine", max_tokens=64)
TEXTS = [
    "the old stone bridge",
    "def readHTTPHeader(): pass",
    "a green house by the river",
    "模型在任务中表现优异",
    "stones",
]


def passages(source, texts, **meta):
    return [
        Passage(source=source, file=source, digest=f"d{len(texts)}", stamp="1:1", start=100 * place,
                end=100 * place + len(text), heading="", text=text, meta=meta)
        for place, text in enumerate(texts)
    ]  # fmt: skip


def vectors(count, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def store(tmp_path):
    with Store.written(tmp_path / "store", ABOUT) as made:
        made.replace(passages("a.txt", TEXTS, lang="en"), vectors(5), known=set())
        made.replace(passages("b.txt", ["another river's stone"], lang="fr"), vectors(1, seed=1), known=set())
        made.settle()
    return made


def test_a_vector_finds_itself_first_with_its_likeness(store):
    hits = store.dense(vectors(5)[2], 6)
    assert (hits[0].source, hits[0].start, hits[0].text) == ("a.txt", 200, TEXTS[2])
    expected = vectors(5) @ vectors(5)[2]
    found = {hit.start: hit.score for hit in hits if hit.source == "a.txt"}
    assert np.allclose([found[100 * place] for place in range(5)], expected, atol=1e-5)


@pytest.mark.parametrize("query,text", [
    ("read http header", TEXTS[1]), ("readHTTPHeader", TEXTS[1]), ("HOUSES", TEXTS[2]), ("任务", TEXTS[3]), ("bridge", TEXTS[0]),
])  # fmt: skip
def test_words_find_their_passage(store, query, text):
    assert store.bm25(query, 1)[0].text == text


def test_words_that_are_nowhere_find_nothing(store):
    assert store.bm25("zebra", 5) == store.bm25("!?", 5) == []


def test_replacing_a_source_takes_its_old_passages_out_in_one_go(store):
    store.replace(passages("a.txt", ["a new text"]), vectors(1, seed=2), known={"a.txt"})
    assert len(store) == 2
    assert [hit.text for hit in store.passages_of("a.txt")[0]] == ["a new text"]
    assert store.known()["b.txt"] == ("b.txt", "d1", "1:1") and store.known()["a.txt"][1] == "d1"
    assert store.bm25("green", 5) == [] and store.bm25("new", 5)[0].source == "a.txt", "unsettled rows are found too"


def test_removing_takes_out_all_passages_of_a_source(store):
    store.remove(["a.txt", "not there", "it's"])
    assert len(store) == 1 and set(store.known()) == {"b.txt"}


def test_conditions_hold_for_every_hit(store):
    assert {hit.source for hit in store.dense(vectors(5)[0], 6, where=filter_of(["lang=fr"]))} == {"b.txt"}
    assert store.bm25("stone", 5, where="source = 'b.txt'")[0].meta == {"lang": "fr"}
    with pytest.raises(ConfigError, match="--where foo = 3: the store cannot take it"):
        store.dense(vectors(5)[0], 2, where="foo = 3")
    with pytest.raises(ConfigError, match="write key=value"):
        filter_of(["lang"])


def test_a_store_of_another_model_is_refused_by_what_differs(store):
    other = replace(ABOUT, model="n", fingerprint={"model": "bb", "pooling": "mean"})
    with pytest.raises(ConfigError, match="holds vectors of m with model='aa', and these would have 'bb'"):
        Store.written(store.place, other).__enter__()
    wider = replace(ABOUT, dimensions=16)
    with pytest.raises(ConfigError, match="with dimensions=8, and these would have 16"):
        Store.written(store.place, wider).__enter__()


def test_two_writers_at_once_are_refused(store):
    with Store.written(store.place, ABOUT), pytest.raises(ConfigError, match="is being written by another process"):
        Store.written(store.place, ABOUT).__enter__()
    with Store.written(store.place, ABOUT) as again:
        assert len(again) == 6


def test_a_prompt_that_only_one_of_two_models_has_makes_them_differ(store):
    prompted = replace(ABOUT, fingerprint={**ABOUT.fingerprint, "prefix": "of "})
    for ours, theirs in ((ABOUT, prompted), (prompted, ABOUT)):
        assert ours.differing(theirs)[0] == "prefix"


def test_a_reader_sees_what_is_written_meanwhile(store):
    reader = Store.open(store.place)
    with Store.written(store.place, ABOUT) as writer:
        writer.remove(["a.txt"])
    assert len(reader) == 1


def test_what_was_killed_while_its_table_was_made_begins_anew(tmp_path):
    (tmp_path / "store" / "passages.lance" / "_transactions").mkdir(parents=True)
    with pytest.raises(DataError, match="make one with"):
        Store.open(tmp_path / "store")
    with Store.written(tmp_path / "store", ABOUT) as store:
        store.replace(passages("a", ["text"]), vectors(1), known=set())
        assert len(store) == 1


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        Store.written(tmp_path / "file" / "store", ABOUT).__enter__()


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match="is no store of passages"):
        Store.open(tmp_path)
    with pytest.raises(DataError, match="make one with"):
        Store.open(tmp_path / "nowhere")


def test_the_index_agrees_with_looking_at_every_vector(tmp_path):
    with Store.written(tmp_path / "store", ABOUT) as store:
        store.replace(passages("a", [f"text {n}" for n in range(600)]), vectors(600), known=set())
        store.build_index()
    queries = vectors(20, seed=5)
    same = [
        len({h.start for h in store.dense(q, 10)} & {h.start for h in store.dense(q, 10, exact=True)}) for q in queries
    ]
    assert sum(same) >= 0.8 * 200
    exact = np.sort(vectors(600) @ queries[0])[::-1][:10]
    assert np.allclose([hit.score for hit in store.dense(queries[0], 10, exact=True)], exact, atol=1e-5)


@given(st.lists(st.permutations("abcdef").map(lambda p: p[:4]), min_size=1, max_size=3))
def test_fusion_is_the_sum_of_reciprocal_ranks(rankings):
    found = rank_fusion(rankings, k=60)
    expected = {key: sum(1 / (60 + r.index(key) + 1) for r in rankings if key in r) for r in rankings for key in r}
    assert dict(found) == pytest.approx(expected)
    assert [score for _, score in found] == sorted(expected.values(), reverse=True)


@pytest.mark.parametrize("text,terms", [
    ("readHTTPHeader", "read http header readhttpheader"), ("read_http_header", "read http header read_http_header"),
    ("The old  stone.", "the old stone"), ("模型在", "模型 型在"), ("x", "x"), ("__init__", "init"),
    ("", ""), ("v2.13", "v 2 v2 13"), ("élève Größe", "élève grösse"), ("taille_élève", "taille élève taille_élève"),
])  # fmt: skip
def test_terms(text, terms):
    assert terms_of(text) == terms
