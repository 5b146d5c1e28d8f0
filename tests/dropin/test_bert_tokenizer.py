"""The BERT-style tokenizer against `transformers.AutoTokenizer` on the same folder."""

import json
import pickle

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from modernbert.dropin.bert_encoding import BatchEncoding
from modernbert.dropin.bert_tokenizer import NO_LIMIT, ModernBERTTokenizer
from modernbert.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from modernbert.text.tokenizer import save_tokenizer

TEXTS = [
    "ModernBERT在NLP任务中表现优异。", "Hello world,  it's the river!  ", "", "😀👍🏽 e\u0301moji\n\ttabs", "a [MASK] b[SEP]",
    "the old house " * 9,
]  # fmt: skip
PAIRS = ["Where?", "谁？", "a", "", "in the morning", "?"]
WORDS = [["The", "river", "don't"], [], ["河流", "😀", ",", " light "], ["stone"] * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tiny_tokenizer, folder, model_max_length=24)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return ModernBERTTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return pytest.importorskip("transformers", minversion="5").AutoTokenizer.from_pretrained(folder)


CALLS = [
    {},
    {"padding": True},
    {"padding": "longest", "pad_to_multiple_of": 8, "return_special_tokens_mask": True, "return_length": True},
    {"padding": "max_length", "max_length": 70},
    {"padding": "max_length", "truncation": True},
    {"padding": True, "padding_side": "left", "return_offsets_mapping": True},
    {"truncation": True},
    {"truncation": "longest_first", "max_length": 9, "return_offsets_mapping": True},
    {"max_length": 7},
    {"truncation": False, "max_length": 7},
    {"truncation": "only_first", "max_length": 11},
    {"add_special_tokens": False, "return_attention_mask": False},
    {"truncation": True, "max_length": 12, "stride": 3, "return_overflowing_tokens": True, "padding": True},
    {"truncation": True, "max_length": 10, "return_overflowing_tokens": True, "return_offsets_mapping": True},
]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_columns_are_those_of_transformers(call, ours, theirs):
    assert dict(ours(TEXTS, **call)) == dict(theirs(TEXTS, **call))
    assert dict(ours(WORDS, is_split_into_words=True, **call)) == dict(theirs(WORDS, is_split_into_words=True, **call))
    for text in TEXTS:
        assert dict(ours(text, **call)) == dict(theirs(text, **call))
    if call.get("truncation") != "only_first":  # which some of the pairs are too long for
        assert dict(ours(TEXTS, PAIRS, **call)) == dict(theirs(TEXTS, PAIRS, **call))
        assert dict(ours(TEXTS[0], PAIRS[0], **call)) == dict(theirs(TEXTS[0], PAIRS[0], **call))


def test_questions_stay_whole_where_the_passage_alone_is_cut(ours, theirs):
    call = {"truncation": "only_second", "max_length": 20, "stride": 4, "padding": "max_length"}
    call |= {"return_overflowing_tokens": True, "return_offsets_mapping": True, "return_tensors": "np"}
    questions, passages = ["where is it", "谁"], ["the old house " * 9, "ModernBERT在NLP任务中表现优异。" * 2]
    a, b = ours(questions, passages, **call), theirs(questions, passages, **call)
    assert list(a) == list(b) and len(a["overflow_to_sample_mapping"]) > 4
    assert all(np.array_equal(a[name], b[name]) for name in a)
    for row in range(len(a.input_ids)):
        assert (a.sequence_ids(row), a.word_ids(row), a.tokens(row)) == (
            b.sequence_ids(row),
            b.word_ids(row),
            b.tokens(row),
        )
    places = [
        (a.char_to_token(0, char, sequence_index=1), b.char_to_token(0, char, sequence_index=1)) for char in range(12)
    ]
    assert all(x == y for x, y in places) and any(x is not None for x, _ in places)
    spans = [(a.token_to_chars(0, token), b.token_to_chars(0, token)) for token in range(20)]
    assert all(x == y for x, y in spans) and spans[1][0].start == 0 and spans[0][0] is None


def test_texts_and_ids_go_both_ways_as_in_transformers(ours, theirs):
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text) and ours.tokenize(text) == theirs.tokenize(text)
        tokens = ours.convert_ids_to_tokens(ids)
        assert tokens == theirs.convert_ids_to_tokens(ids) and ours.convert_tokens_to_ids(tokens) == ids
        assert ours.convert_tokens_to_string(ours.tokenize(text)) == theirs.convert_tokens_to_string(
            theirs.tokenize(text)
        )
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(torch.tensor(ids), skip) == ours.batch_decode(torch.tensor([ids]), skip)[0]
    assert ours.convert_tokens_to_ids("no such token") == ours.unk_token_id


def test_names_numbers_and_special_ids_are_those_of_transformers(ours, theirs):
    for role in ("cls", "sep", "pad", "mask", "unk", "bos", "eos"):
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token")
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id")
    assert (len(ours), ours.vocab_size, ours.model_max_length) == (len(theirs), theirs.vocab_size, 24)
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids) and ours.get_vocab() == theirs.get_vocab()
    assert ours.num_special_tokens_to_add(pair=True) == 3
    ids = ours.encode("a [MASK] b")
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == [
        int(i in ours.all_special_ids) for i in ids
    ]
    with pytest.raises(AttributeError, match="mask_tokens"):
        _ = ours.mask_tokens


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_padded_together_later_as_in_transformers(side, ours, theirs):
    examples = [dict(ours(text, return_special_tokens_mask=True)) | {"number": i} for i, text in enumerate(TEXTS)]
    for call in ({}, {"padding": "max_length", "max_length": 80}, {"pad_to_multiple_of": 16}, {"padding": False}):
        a, b = (t.pad(examples, padding_side=side, **{"padding": True} | call) for t in (ours, theirs))
        assert dict(a) == dict(b)
    tensors = ours.pad(examples, padding_side=side, return_tensors="pt")
    assert tensors.input_ids.dtype == torch.int64 and tensors.number.tolist() == list(range(6))
    alone = ours.pad({"input_ids": [5, 6]}, padding="max_length", max_length=4)
    assert dict(alone) == dict(theirs.pad({"input_ids": [5, 6]}, padding="max_length", max_length=4))
    labels = ours.pad([{"input_ids": [1], "labels": [2]}, {"input_ids": [1, 1], "labels": [2, 2]}], padding_side=side)
    assert labels["labels"][0] == ([2, -100] if side == "right" else [-100, 2])


def test_an_encoding_is_a_dict_and_an_object_that_moves(ours):
    batch = ours(TEXTS[:2], padding=True, return_tensors="pt")
    assert set({**batch}) == {"input_ids", "attention_mask"} and batch.input_ids is batch["input_ids"]
    assert batch.to("meta") is batch and batch.input_ids.is_meta and batch.is_fast
    assert batch[0].ids == ours(TEXTS[:2], padding=True)["input_ids"][0]
    assert isinstance(batch, dict) and "token_type_ids" not in batch
    again = pickle.loads(pickle.dumps(ours(TEXTS[:2])))
    assert again.input_ids == ours(TEXTS[:2]).input_ids and again.tokens(1) == ours(TEXTS[:2]).tokens(1)
    with pytest.raises(AttributeError, match="has no token_type_ids"):
        _ = batch.token_type_ids
    with pytest.raises(DataError, match="of what a tokenizer gave"):
        BatchEncoding({"input_ids": [[1]]}).word_ids()


@pytest.mark.parametrize(
    "columns",
    [
        {"labels": [0.5, 1.0]},
        {"labels": [[0.5, 1.0], [0, 1]]},
        {"labels": [1, 0], "flag": [True, False]},
        {"labels": np.array([0.5, 1.0])},
        {"labels": [np.array([0.5]), np.array([1.0])]},
        {"labels": torch.tensor([0.5], dtype=torch.float64)},
        {"input_ids": [[], []]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["pt", "np"])
def test_numbers_become_the_tensors_that_transformers_makes_of_them(kind, columns):
    transformers = pytest.importorskip("transformers", minversion="5")
    ours = BatchEncoding(dict(columns)).convert_to_tensors(kind)
    stock = transformers.BatchEncoding(dict(columns)).convert_to_tensors(kind)
    for name, column in stock.items():
        assert ours[name].dtype == column.dtype and ours[name].tolist() == column.tolist()


@pytest.mark.parametrize("column", [["good", "bad"], [None, 1], [["a"], ["b"]]])
def test_a_column_of_text_is_refused_in_a_line(column, ours):
    rows = [{"input_ids": [5, 6], "source": source} for source in column]
    with pytest.raises(
        DataError, match=r"source holds .*, of which there is no tensor; leave that column out"
    ) as raised:
        ours.pad(rows, return_tensors="pt")
    assert "\n" not in str(raised.value)
    assert ours.pad(rows)["source"] == column
    with pytest.raises(DataError, match="mixed: rows of 1 to 2"):
        BatchEncoding({"mixed": [1, [2, 3]]}).convert_to_tensors("pt")


def test_older_names_and_arguments_of_methods_do_the_same(ours, theirs, tmp_path):
    assert ours.encode_plus(TEXTS[0], max_length=7) == ours(TEXTS[0], max_length=7)
    pairs = list(zip(TEXTS, PAIRS, strict=True))
    assert ours.batch_encode_plus(pairs, padding=True) == ours(TEXTS, PAIRS, padding=True)
    ids = ours.encode("Hello world , it 's")
    for clean in (None, False, True):
        decoded = theirs.decode(ids, clean_up_tokenization_spaces=clean)
        assert ours.decode(ids, clean_up_tokenization_spaces=clean) == decoded
        assert ours.batch_decode([ids], clean_up_tokenization_spaces=clean) == [decoded]
    with pytest.raises(TypeError, match="skip_specials"):
        ours.decode(ids, skip_specials=True)
    ours.save_pretrained(tmp_path / "out", legacy_format=False)
    with pytest.raises(ConfigError, match=r"save_pretrained\(push_to_hub=…\) is not known here"):
        ours.save_pretrained(tmp_path / "none", push_to_hub=True)
    assert not (tmp_path / "none").exists()


def test_spaces_of_another_kind_of_tokenizer_are_not_cleaned_up():
    names = {role: f"[{role.upper()}]" for role in ("cls", "sep", "pad", "mask", "unk")}
    vocabulary = {name: number for number, name in enumerate([*names.values(), "a", "."])}
    words = ModernBERTTokenizer(Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), names=names)
    assert words.decode([5, 6]) == "a ."
    with pytest.raises(UnsupportedError, match="clean_up_tokenization_spaces=True"):
        words.batch_decode([[5, 6]], clean_up_tokenization_spaces=True)


def test_a_call_leaves_nothing_behind_for_the_next(ours):
    before = ours(TEXTS)
    ours(TEXTS, padding="max_length", max_length=40, truncation=True)
    with pytest.raises(DataError):
        ours(["a"], ["the old house " * 9], truncation="only_first", max_length=5)
    assert dict(ours(TEXTS)) == dict(before)


@pytest.mark.parametrize(
    ("arguments", "changes", "error", "what"),
    [
        ((["a", None],), {}, DataError, "item 2 is None; give a text"),
        ((float("nan"),), {}, DataError, "item 1 is nan"),
        (([],), {}, DataError, "no texts"),
        ((["a", "b"], ["c"]), {}, DataError, "2 texts and 1 second texts"),
        ((["a"], "c"), {}, DataError, "one text"),
        (([["a", 3]],), {"is_split_into_words": True}, DataError, "a list of words"),
        ((["a", "the river"],), {"return_tensors": "pt"}, DataError, "give padding=True"),
        ((["a"],), {"return_tensors": "tf"}, ConfigError, "return_tensors='tf'"),
        ((["a"],), {"padding": "longst"}, ConfigError, "padding='longst'"),
        ((["a"],), {"truncation": "second"}, ConfigError, "truncation='second'"),
        ((["a"],), {"truncation": True, "max_length": 8, "stride": 6}, ConfigError, "stride=6 must be below the 6"),
        ((["a"],), {"truncation": True, "padding": True, "pad_to_multiple_of": 7}, ConfigError, "no multiple"),
        ((["a"],), {"return_token_type_ids": True}, UnsupportedError, "no token types"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(arguments, changes, error, what, ours):
    with pytest.raises(error, match=what) as raised:
        ours(*arguments, **changes)
    assert "\n" not in str(raised.value)


def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(folder, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5")
    tokenizer = ModernBERTTokenizer.from_pretrained(
        folder, model_max_length=30, padding_side="left", truncation_side="left"
    )
    assert tokenizer.add_tokens(["<gene>", "the"], special_tokens=False) == 2 and len(tokenizer) == 322
    tokenizer.save_pretrained(tmp_path)
    call = {"padding": True, "truncation": True, "max_length": 9}
    texts = [*TEXTS, "a <gene> b"]
    again, stock = (t.from_pretrained(tmp_path) for t in (ModernBERTTokenizer, transformers.AutoTokenizer))
    assert again.model_max_length == 30 and again.padding_side == again.truncation_side == "left"
    assert dict(again(texts, **call)) == dict(tokenizer(texts, **call)) == dict(stock(texts, **call))


def test_without_a_limit_nothing_is_cut(folder, tmp_path, ours):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values | {"model_max_length": NO_LIMIT}))
    free = ModernBERTTokenizer.from_pretrained(tmp_path)
    assert free(TEXTS, truncation=True).input_ids == ours(TEXTS).input_ids
    assert len(free(TEXTS, truncation=True, max_length=9)["input_ids"][-1]) == 9
    (tmp_path / "tokenizer_config.json").unlink()  # a bare tokenizer.json does
    assert ModernBERTTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids == ours(TEXTS).input_ids


def test_what_is_no_tokenizer_is_refused_in_a_line(folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        ModernBERTTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        ModernBERTTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="do_lower_case"):
        ModernBERTTokenizer.from_pretrained(folder, do_lower_case=True)
