"""Texts → vectors: the same as each text alone, in the order of the texts, a bounded part of them at a time."""

import copy
import json
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import Lowercase

from modernbert import MaskedLM
from modernbert.errors import ConfigError, DataError
from modernbert.retrieval import encode, windows
from modernbert.retrieval.windows import batches_of_like_length


@pytest.fixture
def with_tokenizer(tiny_model):
    """The tiny model with its tokenizer's JSON changed."""

    def change(**changes):
        state = {**json.loads(tiny_model.tokenizer.to_str()), **changes}
        model = copy.copy(tiny_model)
        model.tokenizer = Tokenizer.from_str(json.dumps(state))
        return model

    return change


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_text_has_the_vector_that_it_has_alone(tiny_model, texts, alone, pooling, normalize):
    found = encode(tiny_model, texts, pooling=pooling, normalize=normalize)
    assert found.dtype == np.float32 and found.shape == (len(texts), 32)
    assert np.allclose(found, alone(texts, pooling, normalize), atol=1e-5)


@given(
    counts=st.lists(st.integers(0, 20), max_size=40), budget=st.integers(1, 400), texts_per_window=st.integers(1, 50)
)
@settings(max_examples=25, deadline=None)
def test_batches_and_windows_change_nothing(tiny_model, alone, counts, budget, texts_per_window):
    texts = [f"{'river ' * count}{place}" for place, count in enumerate(counts)]
    found = encode(tiny_model, texts, tokens_per_batch=budget, texts_per_window=texts_per_window)
    expected = alone(texts) if texts else np.zeros((0, 32))
    assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-5)


@given(lengths=st.lists(st.integers(0, 50), max_size=60), budget=st.integers(1, 120))
def test_batches_hold_each_text_once_longest_first_within_the_budget(lengths, budget):
    batches = list(batches_of_like_length(lengths, budget))
    order = [place for batch in batches for place in batch]
    assert sorted(order) == [place for place, length in enumerate(lengths) if length]
    assert [lengths[place] for place in order] == sorted((n for n in lengths if n), reverse=True)
    sums = [sum(lengths[place] for place in batch) for batch in batches]
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(sums, batches, strict=True))
    assert all(total + lengths[after[0]] > budget for total, after in zip(sums, batches[1:], strict=False))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_gives_the_same_vectors_from_the_same_folder(tiny_folder, texts, pooling, tmp_path):
    pytest.importorskip("sentence_transformers", minversion="5.4")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    theirs = SentenceTransformer(
        modules=[Transformer(str(tiny_folder)), Pooling(32, pooling), Normalize()], device="cpu"
    )
    theirs.save(str(tmp_path / "theirs"))
    long = ["the old stone " * 100]
    found = encode(tmp_path / "theirs", texts + long)
    assert np.allclose(found, theirs.encode(texts + long), atol=1e-5)


def test_a_generator_of_unknown_length_is_enough(tiny_model, texts):
    found = encode(tiny_model, (text for text in texts), texts_per_window=7)
    assert np.allclose(found, encode(tiny_model, texts), atol=1e-6)


def test_no_texts_give_no_vectors(tiny_model):
    assert encode(tiny_model, [], truncate_dim=8).shape == (0, 8)


def test_a_window_ends_behind_a_million_characters(tiny_model, monkeypatch):
    monkeypatch.setattr(windows, "_CHARS_PER_WINDOW", 10)
    cut = list(windows._windows(iter(["12345", "67890", "long long long text", "x", "y"]), 1000))
    assert cut == [["12345", "67890"], ["long long long text"], ["x", "y"]]


def test_fewer_dimensions_are_cut_before_they_are_normalised(tiny_model, texts, alone):
    found = encode(tiny_model, texts, truncate_dim=5)
    assert np.allclose(found, alone(texts, dimensions=5), atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_text_that_is_too_long_is_cut_before_its_last_special_token_and_said(tiny_model, alone, caplog):
    words = "stone river the old new light"
    ids = tiny_model.tokenizer.encode(words).ids
    kept = tiny_model.tokenizer.decode(ids[1:9], skip_special_tokens=False)
    found = encode(tiny_model, ["a", words, words], max_length=10)
    assert tiny_model.tokenizer.encode(kept).ids == ids[:9] + ids[-1:], "the test cuts at a token"
    assert np.allclose(found[1:], alone([kept, kept]), atol=1e-5)
    assert [r.getMessage() for r in caplog.records] == [
        "2 of 3 texts were longer than 10 tokens and cut there; the model takes 128"
    ]


def test_a_text_of_just_the_longest_length_is_not_called_cut(tiny_model, caplog):
    text = "stone river the old"
    length = len(tiny_model.tokenizer.encode(text))
    encode(tiny_model, [text], max_length=length)
    assert not caplog.records
    encode(tiny_model, [text], max_length=length - 1)
    assert len(caplog.records) == 1


def test_the_length_is_the_models_positions_unless_said(tiny_model, caplog):
    encode(tiny_model, ["river " * 500])
    assert "longer than 128 tokens" in caplog.text


def test_a_text_without_a_token_is_zero_and_said(with_tokenizer, caplog):
    bare = with_tokenizer(post_processor=None)
    assert len(bare.tokenizer.encode("")) == 0
    found = encode(bare, ["", "river", ""])
    assert not found[[0, 2]].any() and np.isclose(np.linalg.norm(found[1]), 1)
    assert [r.getMessage() for r in caplog.records] == ["2 of 3 texts gave no token; their vectors are zero"]
    with pytest.raises(ConfigError, match="which this tokenizer does not add; say mean"):
        encode(bare, ["river"], pooling="cls")


def test_padding_and_truncation_in_the_tokenizers_own_file_do_not_count_and_stay(with_tokenizer, texts, alone):
    cutting = with_tokenizer()
    cutting.tokenizer.enable_truncation(4)
    cutting.tokenizer.enable_padding(length=200)
    before = cutting.tokenizer.to_str()
    assert np.allclose(encode(cutting, texts), alone(texts), atol=1e-5)
    assert cutting.tokenizer.to_str() == before


def test_what_was_changed_of_a_tokenizer_between_two_calls_counts(tiny_config, with_tokenizer):
    model = MaskedLM(tiny_config.replace(vocab_size=384), with_tokenizer().tokenizer).draw(0).eval()
    before = encode(model, ["the river"])
    model.tokenizer.add_tokens(["river"])
    again = MaskedLM(model.config, Tokenizer.from_str(model.tokenizer.to_str())).draw(0).eval()
    assert np.array_equal(encode(model, ["the river"]), encode(again, ["the river"]))
    assert not np.allclose(encode(model, ["the river"]), before, atol=1e-3)
    model.tokenizer.add_tokens([AddedToken("river", lstrip=True)])
    again = MaskedLM(model.config, Tokenizer.from_str(model.tokenizer.to_str())).draw(0).eval()
    assert np.array_equal(encode(model, ["the river"]), encode(again, ["the river"]))
    for change in ({"normalizer": Lowercase()}, {"encode_special_tokens": True}):
        for name, value in change.items():
            setattr(model.tokenizer, name, value)
        anew = MaskedLM(model.config, Tokenizer.from_str(model.tokenizer.to_str())).draw(0).eval()
        anew.tokenizer.encode_special_tokens = model.tokenizer.encode_special_tokens
        assert np.array_equal(encode(model, ["THE [SEP] Letter"]), encode(anew, ["THE [SEP] Letter"])), change


def test_dropout_is_off_and_training_goes_on(tiny_config, tiny_tokenizer, texts):
    model = MaskedLM(tiny_config, tiny_tokenizer, out_dropout=0.5).draw(0)
    expected = encode(model.eval(), texts)
    assert np.array_equal(encode(model.train(), texts), expected)
    assert model.training


def test_progress_begins_at_nothing_and_counts_every_token(tiny_model, texts):
    seen = []
    encode(tiny_model, texts, tokens_per_batch=500, progress=lambda counts: seen.append((counts.texts, counts.tokens)))
    tokens = sum(len(tiny_model.tokenizer.encode(text)) for text in texts)
    assert seen[0] == (0, 0) and seen[-1] == (len(texts), tokens) and seen == sorted(seen)
    assert len(seen) > tokens / 500


def test_texts_are_read_two_windows_ahead_and_then_let_go(tiny_model):
    class Text(str):
        """A str that can be watched."""

    alive: list[weakref.ref] = []
    read = most_alive = most_ahead = 0

    def source():
        nonlocal read
        for number in range(400):
            text = Text(f"river {number}")
            alive.append(weakref.ref(text))
            read += 1
            yield text

    def watch(counts):
        nonlocal most_alive, most_ahead
        most_alive = max(most_alive, sum(ref() is not None for ref in alive))
        most_ahead = max(most_ahead, read - counts.texts)

    encode(tiny_model, source(), texts_per_window=10, progress=watch)
    assert read == 400
    assert most_ahead <= 20 and most_alive <= 30


def test_the_next_window_is_tokenised_while_this_one_is_computed(tiny_model, monkeypatch):
    second_window = threading.Event()
    overlapped = []
    tokenise, encode_window = windows._tokenise, windows._encode_window

    def tokenise_and_tell(tokenizer, max_length, texts):
        if texts[0] == "second":
            second_window.set()
        assert threading.current_thread() is not threading.main_thread()
        return tokenise(tokenizer, max_length, texts)

    def wait_and_encode(*args):
        if not overlapped:
            overlapped.append(second_window.wait(timeout=60))
        return encode_window(*args)

    monkeypatch.setattr(windows, "_tokenise", tokenise_and_tell)
    monkeypatch.setattr(windows, "_encode_window", wait_and_encode)
    encode(tiny_model, ["first", "second"], texts_per_window=1)
    assert overlapped == [True]


def test_an_error_of_the_tokenizer_is_raised(tiny_model, monkeypatch):
    monkeypatch.setattr(windows, "_tokenise", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode(tiny_model, ["a"])


def test_an_error_of_the_generator_is_raised(tiny_model):
    def broken():
        yield from ["a"] * 10
        raise KeyError("from the source")

    with pytest.raises(KeyError, match="from the source"):
        encode(tiny_model, broken(), texts_per_window=2)


def test_weights_that_are_not_numbers_are_refused(tiny_model):
    damaged = copy.deepcopy(tiny_model)
    with torch.no_grad():
        damaged.encoder.embeddings.tok_embeddings.weight[damaged.tokenizer.token_to_id("q")] = float("nan")
    with pytest.raises(DataError, match="a vector of texts 5 to 7 is not finite"):
        encode(damaged, ["a"] * 5 + ["quiet q", "b"], texts_per_window=4)


@pytest.mark.parametrize(
    "texts,message",
    [
        ("one text", r"texts is a single text; give a list of texts, such as \[text\]"),
        (b"one text", "texts is a single text"),
        (["a", None], r"text 2 is a NoneType \(None\), not a str"),
        (["a", 3.5], r"text 2 is a float \(3.5\)"),
        ([["a", "b"]], "text 1 is a list"),
        (["a", "b", "\ud800"], "text 3 is no valid Unicode"),
    ],
)
def test_what_is_no_text_is_refused(tiny_model, texts, message):
    with pytest.raises(DataError, match=message) as raised:
        encode(tiny_model, texts)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"pooling": "max"}, "pooling='max' is not known; say mean or cls"),
        ({"truncate_dim": 0}, "truncate_dim=0 is out of range; it must be from 1 to 32, the model's width"),
        ({"truncate_dim": 33}, "truncate_dim=33 is out of range"),
        ({"max_length": 2}, "max_length=2 is out of range; it must be from 3 to 128, the model's positions"),
        ({"max_length": 129}, "max_length=129 is out of range"),
        ({"tokens_per_batch": 0}, "tokens_per_batch=0 is out of range; it must be at least 1"),
        ({"texts_per_window": 0}, "texts_per_window=0 is out of range"),
        ({"out": "vectors.csv"}, "vectors.csv: vectors are written as .npy or .parquet"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_a_text_is_read(tiny_model, settings, message):
    reading = iter(["a"])
    with pytest.raises(ConfigError, match=message):
        encode(tiny_model, reading, **settings)
    assert next(reading) == "a"


def test_a_model_without_a_tokenizer_is_refused(tiny_config):
    with pytest.raises(DataError, match="this model has no tokenizer"):
        encode(MaskedLM(tiny_config).draw(0), ["a"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_vectors(tiny_model, texts, alone):
    found = encode(copy.deepcopy(tiny_model).to("cuda"), texts, tokens_per_batch=500)
    assert np.allclose(found, alone(texts), atol=1e-4)
