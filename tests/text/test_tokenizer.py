"""Training, loading and saving tokenizers, and what they do to a text."""

import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from modernbert.errors import ConfigError, DataError
from modernbert.text.bpe import sample_pieces, train_tokenizer
from modernbert.text.tokenizer import (
    adds_prefix_space,
    for_plain_text,
    load_tokenizer,
    num_ids,
    save_tokenizer,
    special_ids,
    tokenizer_fingerprint,
)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def either(request, corpus):
    return train_tokenizer(corpus, vocab_size=320, prefix_space=request.param)


@given(text=st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_decoding_gives_the_text_back(tokenizer, text):
    decoded = tokenizer.decode(ids(for_plain_text(tokenizer), text))
    expected = unicodedata.normalize("NFC", text)
    # A text that starts with a space and one that does not get the same ids: the space is what is lost.
    assert decoded == (expected if expected.startswith(" ") or not expected else " " + expected)


@given(text=st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_decoding_gives_the_very_text_back_without_a_prefix_space(plain, text):
    assert plain.decode(ids(for_plain_text(plain), text)) == unicodedata.normalize("NFC", text)


@pytest.fixture(scope="module")
def plain(corpus):
    return train_tokenizer(corpus, vocab_size=320, prefix_space=False)


def test_the_size_is_the_one_asked_for_and_every_id_has_an_entry(either):
    assert either.get_vocab_size() == num_ids(either) == 320
    assert sorted(either.get_vocab().values()) == list(range(320))
    assert {"[unused0]", "[unused15]"} <= either.get_vocab().keys()


def test_special_tokens_follow_the_learnt_entries(either):
    special = special_ids(either)
    assert [either.token_to_id(name) for name in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")] == list(
        range(special.unk, special.unk + 5)
    )
    assert special.never_masked_or_drawn == frozenset(range(special.unk, 320))


def test_a_text_is_framed_as_cls_text_sep_and_a_pair_shares_one_type(either):
    encoding = either.encode("the cat", "a dog")
    tokens = encoding.tokens
    assert (tokens[0], tokens[-1], tokens.count("[SEP]"), set(encoding.type_ids)) == ("[CLS]", "[SEP]", 2, {0})


def test_only_the_first_word_of_a_text_gets_the_prefix_space(tokenizer):
    tokens = tokenizer.encode("the [MASK].", add_special_tokens=False).tokens
    assert tokens[-2:] == [" [MASK]", "."]
    assert tokens[0].startswith("Ġ")
    assert tokenizer.decode(ids(tokenizer, "the [MASK]."), skip_special_tokens=False) == " the[MASK]."


def test_the_mask_takes_the_space_before_it(either):
    assert ids(either, "the [MASK] sat") == ids(either, "the[MASK] sat")


def test_words_given_pre_split_keep_their_ids_with_a_prefix_space(tokenizer, plain):
    words = ["the", "cat", "sat"]
    for one, same in ((tokenizer, True), (plain, False)):
        split = one.encode(words, is_pretokenized=True, add_special_tokens=False).ids
        assert (split == ids(one, " ".join(words))) is same
        assert adds_prefix_space(one) is same


def test_case_and_accents_are_kept(either):
    assert ids(either, "Café") != ids(either, "cafe")
    assert ids(either, "Café") == ids(either, "Cafe\u0301")  # NFC


def test_the_order_of_the_texts_makes_no_difference(corpus):
    shuffled = random.Random(1).sample(corpus, len(corpus))
    one, other = (train_tokenizer(texts, vocab_size=320, sample_bytes=8000) for texts in (corpus, shuffled))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)


def test_the_sample_is_bounded_even_and_drawn_by_the_seed():
    texts = [f"{number:04d}" * 5 for number in range(1000)]
    sample = sample_pieces(iter(texts), 5000)
    assert 2000 <= sum(map(len, sample)) <= 5000
    assert 0.3 < sum(int(piece[:4]) < 500 for piece in sample) / len(sample) < 0.7
    assert set(sample) != set(sample_pieces(iter(texts), 5000, seed=1))


def test_a_megabyte_without_a_space_is_cut_into_pieces(corpus):
    assert max(map(len, sample_pieces(["a" * 10**6], 2 * 10**6))) == 4096
    assert train_tokenizer([*corpus, "ab" * 500_000], vocab_size=320).get_vocab_size() == 320


def test_identical_texts_larger_than_the_sample_leave_nothing_but_do_not_hang():
    assert sample_pieces(["x" * 4000] * 10, 100) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 64}, "too small; the least is 320"),
        ({"vocab_size": 1000}, "take 960 or 1024"),
        ({"vocab_size": 320, "sample_bytes": 0}, "sample_bytes=0"),
        ({"vocab_size": 320, "sample_bytes": 2**31}, "sample_bytes=2147483648"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(["text"], **options)


def test_a_vocabulary_larger_than_the_text_supports_is_refused_with_one_that_works(corpus):
    with pytest.raises(DataError, match=r"supports \d+ entries.*--vocab-size (\d+)") as refusal:
        train_tokenizer(corpus, vocab_size=8192)
    nearest = int(str(refusal.value).split("--vocab-size ")[1].split(",")[0])
    assert train_tokenizer(corpus, vocab_size=nearest).get_vocab_size() == nearest
    with pytest.raises(DataError, match=r"supports \d+ entries"):
        train_tokenizer(corpus, vocab_size=nearest + 64)


def test_no_text_at_all_is_refused():
    with pytest.raises(DataError, match=r"supports 277 entries.*; give more text"):
        train_tokenizer([], vocab_size=320)


def test_a_saved_tokenizer_is_the_same_when_loaded_by_folder_or_file(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "new", model_max_length=1024)
    for source in (tmp_path / "new", tmp_path / "new" / "tokenizer.json"):
        assert tokenizer_fingerprint(load_tokenizer(source)) == tokenizer_fingerprint(tokenizer)


def test_transformers_gives_the_same_ids(either, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(either, tmp_path, model_max_length=1024)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat", " the cat", "the [MASK].", "a  b\n    c", "[CLS]", "Café [unused3] x", ""):
        assert theirs(text)["input_ids"] == either.encode(text).ids
    words = ["the", "cat", "."]
    assert theirs(words, is_split_into_words=True)["input_ids"] == either.encode(words, is_pretokenized=True).ids
    assert theirs.model_max_length == 1024
    assert theirs.mask_token_id == special_ids(either).mask
    assert theirs.pad_token_id == special_ids(either).pad
    assert theirs.model_input_names == ["input_ids", "attention_mask"]
    theirs.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.encode("the [MASK]. cat").ids == either.encode("the [MASK]. cat").ids


def test_truncation_and_padding_do_not_change_the_fingerprint(tokenizer):
    other = Tokenizer.from_str(tokenizer.to_str())
    other.enable_truncation(8)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
    other.normalizer = normalizers.Lowercase()
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", "no such file; train one"),
        ("broken/tokenizer.json", "no tokenizer that can be read"),
        ("./no/such/folder", "no such file or folder"),
        ("owner/model", "no tokenizer.json under that name"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_one_line_with_a_remedy(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)

    def refuse(*_):
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=message) as refusal:
        load_tokenizer(source)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "names",
    [("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), ("<s>", "</s>", "<pad>", "<mask>", "<unk>")],
)
def test_special_ids_are_read_in_either_style_and_a_missing_one_is_named(names):
    tokenizer = Tokenizer(models.WordLevel({"word": 0, "far": 9}, unk_token="word"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(names[:3]))
    with pytest.raises(DataError, match=names[3].replace("[", r"\[")):
        special_ids(tokenizer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[3:]])
    special = special_ids(tokenizer)
    assert special.mask == tokenizer.token_to_id(names[3])
    holes = set(range(num_ids(tokenizer))) - set(tokenizer.get_vocab().values())
    assert holes and holes <= special.never_masked_or_drawn


GENUINE = Path(__file__).parents[2].parent / "shared" / "modernbert-tokenizer"


@pytest.mark.skipif(not GENUINE.exists(), reason="the genuine tokenizer is not here")
@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  def f(x):\n        return x[0]\n",
        "a [MASK] b",
        "Café ﬁne ½",
        "今天天气很好。",
        "\t\n",
        "🙂 x\u200dy",
        "",
    ],
)
def test_ids_of_the_genuine_tokenizer_are_the_same_through_us_and_through_transformers(text, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(GENUINE)
    save_tokenizer(ours, tmp_path, model_max_length=8192)
    ids = Tokenizer.from_file(str(GENUINE / "tokenizer.json")).encode(text).ids
    assert ours.encode(text, add_special_tokens=True).ids == ids
    assert transformers.AutoTokenizer.from_pretrained(GENUINE)(text)["input_ids"] == ids
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
