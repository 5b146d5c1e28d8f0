import copy
import functools
import itertools
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from modernbert.batch import IGNORE, PackedBatch, idle_batch, pack_features
from modernbert.errors import ConfigError, DataError
from modernbert.tasks import load
from modernbert.tasks.entities import entity_spans
from modernbert.tasks.head import HeadSettings, LossSettings
from modernbert.tasks.pieces import WordReader
from modernbert.tasks.prefix import with_prefix_space, without_prefix_space
from modernbert.tasks.tag import Tagger
from modernbert.text import adds_prefix_space, load_tokenizer
from modernbert.text.examples import TagExample
from modernbert.text.labelled_tags import tag_names

LABELS = ("O", "B-x", "I-x")
SHARED = Path(os.environ.get("MODERNBERT_SHARED", Path(__file__).parents[3] / "shared"))
CHINESE = ["北", "京", "is", "the", "old", "城", "市", ",", "quiet"]


def settings_of(max_length=128, stride=0, labels=LABELS, prefix_space=True):
    return HeadSettings(
        kind="tag", labels=labels, problem="tokens", max_length=max_length, stride=stride, prefix_space=prefix_space
    )


@pytest.fixture(scope="module")
def bare_tokenizer(tiny_tokenizer):
    """As published ModernBERT's: the first word of a text is another than the same word after a space."""
    tokenizer = without_prefix_space(tiny_tokenizer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert not adds_prefix_space(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def tagger(tiny_config, bare_tokenizer):
    return Tagger(tiny_config, bare_tokenizer, settings_of()).draw(0).eval()


@pytest.fixture
def windowed(tagger):
    """Makes a tagger with windows whose answers depend on each token alone, so that these must not."""

    def make(max_length, stride, *, by_context=False):
        model = copy.copy(tagger)
        model.settings = settings_of(max_length, stride)

        def logits(batch):
            found = torch.nn.functional.one_hot(batch.input_ids_T % 3, 3).float()
            if by_context:  # B-x for all that is within two tokens of an end of the window
                places = torch.cat([torch.arange(n) for n in batch.lengths()])
                lengths = torch.cat([torch.full((n,), n) for n in batch.lengths()])
                found = torch.nn.functional.one_hot(((places < 3) | (places >= lengths - 3)).long(), 3).float()
            return found

        model.logits = logits
        return model

    return make


def words_of(count, seed=0):
    names = ["river", "mountain", "the", "of", "stone", "house", "Xylophon-", "ü", "北"]
    return random.Random(seed).choices(names, k=count)


# Spaces


def test_the_first_word_is_read_as_after_a_space(tagger):
    first, second = tagger.features(tagger.examples(["stone", "the stone"]))
    assert first.ids_T[1:].tolist() == second.ids_T[-len(first.ids_T) + 1 :].tolist()


@pytest.mark.parametrize("kind", ["bare", "own", "byte level with prefix"])
def test_a_list_of_words_has_the_ids_of_its_text_whatever_the_tokenizer_did(
    kind, tiny_tokenizer, bare_tokenizer, tiny_config
):
    tokenizer = tiny_tokenizer if kind == "own" else copy.deepcopy(bare_tokenizer)
    if kind == "byte level with prefix":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    model = Tagger(tiny_config, tokenizer, settings_of())
    texts = ["the old stone", "北京", "river 北京 house"]
    lists = [["the", "old", "stone"], ["北", "京"], ["river", "北", "京", "house"]]
    of_text, of_words = (model.features(model.examples(items)) for items in (texts, lists))
    assert [f.ids_T.tolist() for f in of_text] == [f.ids_T.tolist() for f in of_words]
    plain = without_prefix_space(tokenizer).encode(" the old stone").ids
    assert of_text[0].ids_T.tolist() == plain


def test_a_word_without_a_space_before_it_is_read_as_the_text_has_it(tagger, bare_tokenizer):
    (feature,) = tagger.features(tagger.examples(["old,new"]))
    pieces = [" old", ",", "new"]
    assert feature.ids_T.tolist() == bare_tokenizer.encode(pieces, is_pretokenized=True).ids


def test_the_prefix_is_put_once_and_can_be_taken_away(bare_tokenizer, tiny_tokenizer):
    for tokenizer in (bare_tokenizer, tiny_tokenizer):
        once = with_prefix_space(tokenizer)
        assert adds_prefix_space(once)
        assert with_prefix_space(once).to_str() == once.to_str()
        assert without_prefix_space(once).encode("the stone").ids == bare_tokenizer.encode("the stone").ids
    assert not adds_prefix_space(bare_tokenizer)  # the caller's own stays as it was


def wordpiece():
    """As BERT's: spaces say nothing, and control characters are dropped."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "stone", "##s", "river", ","]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    return tokenizer


def test_a_tokenizer_to_which_spaces_say_nothing_stays_as_it_is():
    tokenizer = wordpiece()
    assert with_prefix_space(tokenizer) is tokenizer


# Features


def test_a_label_is_at_the_first_token_of_each_word_and_nowhere_else(tagger):
    words = ("mountainous", "the", "stones", "zyzzyva")
    example = TagExample.from_words(words, ("B-x", "I-x", "O", "B-x"))
    (feature,) = tagger.features([example])
    tokens = [tagger.tokenizer.id_to_token(int(token)) for token in feature.ids_T]
    labelled = [token for token, label in zip(tokens, feature.labels_T, strict=True) if label != IGNORE]
    assert feature.labels_T[feature.labels_T != IGNORE].tolist() == [1, 2, 0, 1]
    assert len(tokens) > len(words) + 2  # or there would be nothing to ignore
    assert all(token.startswith("Ġ") for token in labelled)
    assert sum(token.startswith("Ġ") for token in tokens) == len(words)


def test_words_that_give_no_token_are_o_and_the_others_stay_where_they_are(tiny_config):
    model = Tagger(tiny_config, wordpiece(), settings_of()).draw(0).eval()
    tags = ("O", "B-x", "B-x", "I-x", "O", "B-x")
    example = TagExample.from_words(("\u200b", "stones", "", "\x00", "the", "river"), tags)
    (feature,) = model.features([example])
    assert feature.ids_T.tolist() == [1, 6, 7, 5, 8, 2]
    assert feature.labels_T.tolist() == [IGNORE, 1, IGNORE, 0, 1, IGNORE]
    model.logits = lambda batch: torch.tensor([[0.0, 9.0, 0.0]]).expand(batch.num_tokens, 3)
    (answer,) = model.predict([example])
    assert answer["tags"] == ["O", "B-x", "O", "O", "B-x", "B-x"]


def test_text_between_words_is_read_and_has_no_label(tagger):
    text = "the old, quiet stone"
    example = TagExample(text=text, spans=((0, 3), (15, 20)), tags=("O", "B-x"))
    (feature,) = tagger.features([example])
    (of_text,) = tagger.features(tagger.examples([text]))
    assert feature.ids_T.tolist() == of_text.ids_T.tolist()
    assert (feature.labels_T != IGNORE).sum() == 2


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (TagExample.from_words(("a", "b"), ("O", "B-z"), "f, line 3"), "f, line 3: tag 'B-z' is none of the model's 3"),
        (TagExample.from_words(("a", "b"), ("O",), "f, line 3"), "1 tags for 2 words"),
        (TagExample(text="abc", spans=((0, 2), (1, 3)), where="f"), "word 2 is at 1:3 of 3 characters"),
        (TagExample(text="abc", spans=((0, 4),), where="f"), "word 1 is at 0:4 of 3 characters"),
    ],
)
def test_words_and_tags_that_do_not_fit_are_refused(tagger, example, said):
    with pytest.raises(DataError, match=said):
        tagger.features([example])


def test_tags_written_another_way_are_read_as_bio(tagger):
    example = TagExample.from_words(("a", "b", "c", "d"), ("I-x", "E-x", "U-x", "O"))
    labels_T = tagger.features([example])[0].labels_T
    assert [LABELS[label] for label in labels_T[labels_T != IGNORE]] == ["B-x", "I-x", "B-x", "O"]


def test_labels_that_are_not_bio_are_learnt_and_said_as_they_are(tiny_config, tiny_tokenizer):
    model = Tagger(tiny_config, tiny_tokenizer, settings_of(labels=("NOUN", "VERB"))).draw(0).eval()
    example = TagExample.from_words(("a", "b"), ("VERB", "NOUN"))
    labels_T = model.features([example])[0].labels_T
    assert labels_T[labels_T != IGNORE].tolist() == [1, 0]
    assert set(model.predict([["a", "b"]])[0]["tags"]) <= {"NOUN", "VERB"}


def test_a_stride_of_a_whole_window_is_refused(tagger):
    model = copy.copy(tagger)
    model.settings = settings_of(10, 8)
    with pytest.raises(ConfigError, match="stride=8 with max_length=10: windows have room for 8 tokens"):
        model.features(model.examples(["a"]))


# Windows


@pytest.mark.parametrize(("max_length", "stride"), [(8, 0), (8, 3), (12, 9), (30, 1), (128, 64)])
def test_windows_merge_to_what_one_window_says(windowed, max_length, stride):
    items = [words_of(count, seed=count) for count in (0, 1, 5, 40, 90)]
    whole = windowed(8192, 0).predict(items)
    assert windowed(max_length, stride).predict(items) == whole
    assert sum(len(answer["entities"]) for answer in whole) > 20
    text = " ".join(words_of(60))
    assert windowed(max_length, stride).predict(text) == windowed(8192, 0).predict(text)


def test_an_entity_that_crosses_the_border_of_a_window_is_one(windowed):
    model = windowed(8, 2)
    ids = {word: model.features(model.examples([[word]]))[0].ids_T[1] % 3 for word in words_of(50)}
    begins, inside = (next(w for w, label in ids.items() if label == wanted) for wanted in (1, 2))
    (answer,) = model.predict([[begins, *[inside] * 30]])
    (entity,) = answer["entities"]
    assert (entity["start"], entity["end"]) == (0, len(answer["text"]))
    assert len(model.features(model.examples([[begins, *[inside] * 30]]))) > 3


def test_no_word_is_decided_at_the_edge_of_a_window_but_at_those_of_the_text(windowed):
    model = windowed(12, 6, by_context=True)
    (answer,) = model.predict([["the"] * 100])
    assert answer["tags"] == ["B-x"] * 2 + ["O"] * 96 + ["B-x"] * 2
    assert "B-x" in windowed(12, 3, by_context=True).predict([["the"] * 100])[0]["tags"][2:-2]  # too little is shared


def test_each_word_of_a_long_text_is_learnt_once(tagger):
    model = copy.copy(tagger)
    model.settings = settings_of(20, 7)
    words = words_of(200)
    features = model.features(
        [TagExample.from_words(("old",), ("O",)), TagExample.from_words(tuple(words), ("B-x",) * 200)]
    )
    assert [f.example for f in features] == [0] + [1] * (len(features) - 1)
    assert max(len(f.ids_T) for f in features) == 20
    assert sum((f.labels_T != IGNORE).sum() for f in features[1:]) == 200
    bodies = [f.ids_T[1:-1].tolist() for f in features[1:]]
    assert all(body[-7:] == following[:7] for body, following in itertools.pairwise(bodies))


def test_a_text_longer_than_8192_tokens_is_read_whole(tagger):
    model = copy.copy(tagger)
    model.settings = settings_of(128, 32)
    words = words_of(9_000)
    (answer,) = model.predict([words])
    assert len(answer["tags"]) == 9_000
    assert max(entity["end"] for entity in answer["entities"]) > len(answer["text"]) * 0.9
    assert all(answer["text"][e["start"] : e["end"]] == e["text"] for e in answer["entities"])


# Loss


def test_the_loss_is_that_of_the_labelled_tokens(tagger):
    examples = [TagExample.from_words(("a", "mountain"), ("O", "B-x")), TagExample.from_words(("stone",), ("I-x",))]
    batch = pack_features(tagger.features(examples))
    logits_TC = tagger.logits(batch)
    weights = torch.tensor([0.5, 2.0, 3.0])
    model = copy.copy(tagger)
    for loss in (LossSettings(), LossSettings(class_weights=tuple(weights.tolist()), label_smoothing=0.1)):
        model.loss = loss
        weights_C = None if loss.class_weights is None else weights
        expected = torch.nn.functional.cross_entropy(
            logits_TC,
            batch.labels_T,
            weights_C,
            reduction="sum",
            ignore_index=IGNORE,
            label_smoothing=loss.label_smoothing,
        )
        output = model(batch)
        torch.testing.assert_close(output.loss_sum, expected)
        assert output.num_targets == len(output.losses_M) == 3
    labelled = batch.labels_T != IGNORE
    right = (logits_TC.argmax(1) == batch.labels_T)[labelled].sum()
    assert output.metric_sums["accuracy"] == right


@pytest.mark.parametrize("batch", [idle_batch(), PackedBatch.from_sequences([[1, 2, 3]])], ids=["ignored", "without"])
def test_a_rank_without_targets_takes_part_in_the_backward_pass(tiny_config, tiny_tokenizer, batch):
    model = Tagger(tiny_config, tiny_tokenizer, settings_of()).draw(0)
    model.loss = LossSettings(class_weights=(1.0, 2.0, 3.0), label_smoothing=0.1)
    output = model(batch)
    output.loss_sum.backward()
    assert output.num_targets == 0
    assert output.loss_sum == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# Answers


def test_what_an_answer_holds(tagger):
    text, words = "The river, in 北京.", ["The", "river"]
    of_text, of_words, of_dict, of_tokens = tagger.predict([text, words, {"text": text}, {"tokens": words}])
    assert of_text == of_dict
    assert of_text.keys() == {"text", "entities"}
    assert of_words == of_tokens
    assert of_words.keys() == {"text", "entities", "tags"}
    assert of_words["text"] == "The river"
    (decided,) = tagger.decide(tagger.examples([text]))
    assert len(decided["tags"]) == 7  # The river , in 北 京 .
    for entity in of_text["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert entity["label"] == "x"
        assert 1 / 3 < entity["score"] <= 1


def test_a_score_is_the_mean_over_the_words_of_the_entity(tagger):
    model = copy.copy(tagger)
    probabilities = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.3, 0.6], [0.9, 0.1, 0.0]])
    of_token = torch.cat([torch.ones(1, 3) / 3, probabilities, torch.ones(1, 3) / 3])
    model.logits = lambda batch: of_token.log()
    (answer,) = model.predict([["a", "the", "of"]])
    (entity,) = answer["entities"]
    assert entity["score"] == pytest.approx(0.7)
    assert (entity["text"], entity["label"]) == ("a the", "x")
    assert answer["tags"] == ["B-x", "I-x", "O"]


def test_an_entity_without_its_beginning_gets_one(tagger):
    model = copy.copy(tagger)
    model.logits = lambda batch: torch.tensor([[0.0, 0.0, 9.0]]).expand(batch.num_tokens, 3)
    assert model.predict([["a", "the"]])[0]["tags"] == ["B-x", "I-x"]


def test_texts_without_words_have_no_entities(tagger):
    empty, blank, nothing = tagger.predict(["", " \n ", []])
    assert empty == {"text": "", "entities": []}
    assert blank == {"text": " \n ", "entities": []}
    assert nothing == {"text": "", "entities": [], "tags": []}
    assert tagger.predict([]) == []
    assert [f.ids_T.tolist() for f in tagger.features(tagger.examples([""]))] == [tagger.tokenizer.encode("").ids]


@pytest.mark.parametrize("item", [3, None, [1, 2], {"sentence": "a"}, {"text": 3}])
def test_an_item_that_is_neither_text_nor_words_is_refused(tagger, item):
    with pytest.raises(DataError, match=r"item 2 is .*; give a text, or the words of one"):
        tagger.predict(["a", item])


def test_a_gold_tag_has_no_say_in_the_answer(tagger):
    unlabelled, labelled = (TagExample.from_words(("a", "b"), tags) for tags in (None, ("B-unseen", "O")))
    assert tagger.predict([unlabelled]) == tagger.predict([labelled])


# Folders


def transformers_tags(folder, lists):
    """Of each word the label that transformers' class gives its first token."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.ModernBertForTokenClassification.from_pretrained(folder, attn_implementation="sdpa").eval()
    found = []
    for words in lists:
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = (
                model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits[0].softmax(-1).max(-1)
            )
        ids = inputs.word_ids()
        firsts = [ids.index(word) for word in range(len(words))]
        found.append([(model.config.id2label[int(best.indices[i])], float(best.values[i])) for i in firsts])
    return found


def tags_and_scores(model, lists):
    """Before repair, which transformers leaves to its users."""
    found = [[None] * len(words) for words in lists]
    examples = model.examples(lists)
    features = model.features([replace(e, tags=("O",) * len(e.spans)) for e in examples])
    for feature, logits_TC in zip(features, model.outputs(features), strict=True):
        best = torch.from_numpy(logits_TC[feature.labels_T != IGNORE]).softmax(-1).max(-1)
        found[feature.example] = [
            (model.settings.labels[i], p) for i, p in zip(best.indices, best.values.tolist(), strict=True)
        ]
    return found


def same(ours, theirs):
    assert [[tag for tag, _ in answer] for answer in ours] == [[tag for tag, _ in answer] for answer in theirs]
    assert len({tag for answer in ours for tag, _ in answer}) > 1  # or any order of words would do
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([p for _, p in our], [p for _, p in their], atol=1e-4)


LISTS = [
    words_of(12, seed=3),
    CHINESE,
    ["stone"],
    ["(", "'s", "3.5", "%", "[MASK]", "[CLS]", "e-mail", "\u200b", "北京", "x y"],
]


@pytest.mark.parametrize("kind", ["bare", "own", pytest.param("published", marks=pytest.mark.slow)])
def test_transformers_says_the_same_of_the_words_in_our_folder(
    kind, tiny_tokenizer, bare_tokenizer, tiny_config, tmp_path
):
    tokenizer = {"bare": bare_tokenizer, "own": tiny_tokenizer}.get(kind) or shared_tokenizer("modernbert-tokenizer")
    config = tiny_config.replace(vocab_size=50_368) if kind == "published" else tiny_config
    model = Tagger(config, tokenizer, settings_of()).draw(1).eval()
    folder = model.save(tmp_path / "folder")
    same(tags_and_scores(model, LISTS), transformers_tags(folder, LISTS))
    again = load(folder)
    assert again.predict(LISTS) == model.predict(LISTS)
    assert again.settings == model.settings
    assert again.tokenizer.to_str() == model.tokenizer.to_str()


def test_a_folder_that_was_trained_without_the_prefix_is_read_without_it(bare_tokenizer, tiny_config, tmp_path):
    model = Tagger(tiny_config, bare_tokenizer, settings_of(prefix_space=False)).draw(1).eval()
    folder = model.save(tmp_path / "folder")
    same(tags_and_scores(model, LISTS), transformers_tags(folder, LISTS))
    with_prefix = Tagger(tiny_config, bare_tokenizer, settings_of()).draw(1).eval()
    assert tags_and_scores(with_prefix, LISTS) != tags_and_scores(model, LISTS)


# Learning


class Unspaced(WordReader):
    """What usually goes wrong: the first word is read as the tokenizer likes it."""

    def _pieces(self, example):
        pieces, words_P = super()._pieces(example)
        return [piece.removeprefix(" ") if i == 0 else piece for i, piece in enumerate(pieces)], words_P


def f1(model, examples):
    gold = {(i, *span) for i, e in enumerate(examples) for span in entity_spans(e.tags)}
    found = {(i, *span) for i, answer in enumerate(model.decide(examples)) for span in entity_spans(answer["tags"])}
    return 2 * len(gold & found) / max(len(gold) + len(found), 1)


def test_entities_at_the_start_of_a_text_are_found_because_of_the_prefix(tiny_config, bare_tokenizer):
    names, others = ["river", "mountain", "stone"], ["the", "of", "and", "old", "new", "with"]
    draw = random.Random(0)

    def example(at_start):
        words = [draw.choice(others) for _ in range(5)]
        place = 0 if at_start else draw.randrange(1, 5)
        words[place] = draw.choice(names)
        return TagExample.from_words(tuple(words), tuple("B-x" if word in names else "O" for word in words))

    seen, at_start = [example(False) for _ in range(64)], [example(True) for _ in range(32)]
    scores = []
    for reader in (WordReader, Unspaced):
        model = Tagger(tiny_config, bare_tokenizer, settings_of()).draw(0)
        model._reader = reader(model.tokenizer, max_length=128, stride=0, prefix_space=True)
        batch = pack_features(model.features(seen))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(30):
            output = model(batch)
            (output.loss_sum / output.num_targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert f1(model, seen) == 1.0
        scores.append(f1(model, at_start))
    assert scores[0] == 1.0 > scores[1]


# Real data


@functools.lru_cache(2)
def shared_tokenizer(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    if path.suffix != ".txt":
        return load_tokenizer(path)
    names = path.read_text().split("\n")
    tokenizer = wordpiece()
    tokenizer.model = models.WordPiece({token: i for i, token in enumerate(names) if token}, unk_token="[UNK]")
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase="uncased" in name)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def rows_of(name, split):
    tables = pytest.importorskip("pyarrow.parquet")
    path = SHARED / "data" / name / f"{split}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    table = tables.read_table(path)
    for words, tags in zip(table["tokens"].to_pylist(), table["ner_tags"].to_pylist(), strict=True):
        yield TagExample.from_words(tuple(words), tuple(tags))


SETS = ["ner_wnut17", "ner_ncbi_disease", "ner_bc5cdr"]
TOKENIZERS = [
    "modernbert-tokenizer",
    *(
        "tokenizers/olmo_gpt-neox-dolma-v1_5.json",
        "tokenizers/bert-base-cased-vocab.txt",
        "tokenizers/bert-base-uncased-vocab.txt",
    ),
]


def check_alignment(model, examples, *, byte_level):
    """Each word's tags stand at its first token, and the tokens up to the next word's first give the word back."""
    reader, labels = model.tokenizer, model.settings.labels
    features = model.features(examples)
    assert [f.example for f in features] == list(range(len(examples)))  # none longer than a window
    for feature, example in zip(features, examples, strict=True):
        firsts = np.flatnonzero(feature.labels_T != IGNORE)
        words, tags = example.words, example.tags
        if byte_level:
            stops = [
                *firsts[1:],
                len(feature.ids_T) - np.count_nonzero(feature.ids_T[-1] == reader.encode("").ids[-1:]),
            ]
            found = [reader.decode(feature.ids_T[a:b].tolist()) for a, b in zip(firsts, stops, strict=True)]
            assert [word.strip() for word in found] == [reader.normalizer.normalize_str(w).strip() for w in words]
        else:
            empty = [not reader.encode(word, add_special_tokens=False).ids for word in words]
            tags = tuple(tag for tag, nothing in zip(tags, empty, strict=True) if not nothing)
        assert [labels[i] for i in feature.labels_T[firsts]] == list(tags)


def model_for(name, examples, tiny_config):
    tokenizer = shared_tokenizer(name)
    labels = tuple(tag_names(example.tags for example in examples))
    config = tiny_config.replace(vocab_size=64)  # it is not run
    return Tagger(config, tokenizer, settings_of(8192, 128, labels))


@pytest.mark.parametrize("tokenizer", ["modernbert-tokenizer", "tokenizers/bert-base-cased-vocab.txt"])
def test_labels_of_real_sentences_are_at_their_words(tokenizer, tiny_config):
    examples = [example for name in SETS for example in itertools.islice(rows_of(name, "validation"), 60)]
    check_alignment(model_for(tokenizer, examples, tiny_config), examples, byte_level="vocab" not in tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_labels_of_every_real_sentence_are_at_their_words(name, tokenizer, tiny_config):
    examples = [example for split in ("train", "validation", "test") for example in rows_of(name, split)]
    check_alignment(model_for(tokenizer, examples, tiny_config), examples, byte_level="vocab" not in tokenizer)
