"""Tags in every scheme and format -> BIO of words; entities by characters -> words; and what is refused of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.errors import DataError
from modernbert.text.labelled import Columns, read_labelled
from modernbert.text.labelled_tags import begin_entities, tags_of_entities, to_bio
from modernbert.text.labelled_words import word_spans

CONLL = "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VB O\n\n\n# id 7\nPeter NN B-PER\nBlack NN I-PER\n"


def tagged(path, columns=None, **options):
    return read_labelled(path, "tag", columns or Columns(), **options)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def refused(path, columns=None, **options):
    with pytest.raises(DataError) as error:
        tagged(path, columns, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.iob", "a.bio", "a.tsv"])
@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_conll_is_a_token_a_line_with_its_tag_last(tmp_path, name, separator):
    text = CONLL.replace(" ", separator).replace(f"#{separator}id{separator}", "# id ")
    (tmp_path / name).write_text(text, newline="\r\n")
    file = tagged(tmp_path / name)
    assert [(example.words, example.tags) for example in file.examples] == [
        (("EU", "rejects"), ("B-ORG", "O")),
        (("Peter", "Black"), ("B-PER", "I-PER")),
    ]
    assert file.problem == "tokens" and file.labels == ["O", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    assert file.examples[1].where == f"{tmp_path / name}, line 8" and "1 comment lines left out" in file.remarks


def test_columns_of_conll_are_named_by_their_numbers(tmp_path):
    (tmp_path / "a.conll").write_text("1 EU B-ORG x\n2 says O y\n")
    file = tagged(tmp_path / "a.conll", Columns(words="2", tags="3"))
    assert file.examples[0].words == ("EU", "says") and file.examples[0].tags == ("B-ORG", "O")
    assert "no column '7'; its columns are 1, 2, 3, 4" in refused(tmp_path / "a.conll", Columns(words="7"))


def row(*fields):
    """A line of CoNLL-U: number, form, UPOS, and seven columns that are not read."""
    number, form, tag = fields
    return "\t".join([number, form, form.lower(), tag, "XX", "_", "0", "root", "_", "_"]) + "\n"


CONLLU = (
    "# newdoc\n# sent_id = 1\n# text = Don't go\n#no space\n" + row("1-2", "Don't", "_") + row("1", "Do", "AUX")
    + row("2", "n't", "PART") + row("3", "go", "VERB") + row("3.1", "go", "VERB") + "\n# text = #\n" + row("1", "#", "SYM")
)  # fmt: skip


def test_conllu_is_read_by_its_form_and_part_of_speech(tmp_path):
    (tmp_path / "a.conllu").write_text(CONLLU)
    file = tagged(tmp_path / "a.conllu")
    assert [(example.words, example.tags) for example in file.examples] == [
        (("Do", "n't", "go"), ("AUX", "PART", "VERB")),
        (("#",), ("SYM",)),
    ]
    assert [example.where for example in file.examples] == [f"{tmp_path / 'a.conllu'}, line {n}" for n in (6, 12)]
    assert file.remarks[0] == "columns: words = '2', tags = '4'"
    for said in ("words are in column 2 (form), tags in column 4", "5 comment lines", "2 rows of CoNLL-U left out"):
        assert any(said in remark for remark in file.remarks), said
    named = tagged(tmp_path / "a.conllu", Columns(words="3", tags="1"))
    assert named.examples[0].words == ("do", "n't", "go") and named.examples[0].tags == ("1", "2", "3")
    assert tagged(tmp_path / "a.conllu", labelled=False).examples[0].words == ("Do", "n't", "go")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU\tB-ORG\n", "line 1: 'EU', where .conllu has the number of a word in its sentence; name a file"),
        ("1\tEU\tB-ORG\n", "line 1: 3 columns, where .conllu has ten"),
        (row("1-2", "Don't", "_"), "no examples in it"),
        (row("1", "a", "_") + row("2", "b", "_"), "every tag is '_'"),
    ],
)
def test_what_is_called_conllu_and_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "a.conllu").write_text(text)
    assert message in refused(tmp_path / "a.conllu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU B-ORG\nsays O\n\nPeter NN B-PER\n", "line 4: 3 columns, where the first line has 2 (split at each space)"),
        ("EU\tB-ORG\nsays O\n", "line 2: 1 columns, where the first line has 2 (split at each tab)"),
        ("EU\nsays\n", "one column only, so no tags"),
        ("", "no examples in it"),
        ("word tag\n", "no examples in it"),
        ("EU O\nsays O\n", "every tag is 'O'"),
    ],
)
def test_a_ragged_or_empty_conll_file_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "a.conll").write_text(text)
    assert message in refused(tmp_path / "a.conll")


def test_a_token_may_be_any_character_but_a_separator(tmp_path):
    (tmp_path / "a.conll").write_text("\u3000 O\n\xa0 O\n# O\nEU B-ORG\n")
    assert tagged(tmp_path / "a.conll").examples[0].words == ("\u3000", "\xa0", "#", "EU")


@pytest.mark.parametrize(
    ("tags", "expected", "remark"),
    [
        ("B-a I-a O B-b", "B-a I-a O B-b", None),
        ("I-a I-a O I-b", "B-a I-a O B-b", "IOB1 tags: 2 I- that begin an entity became B-"),
        ("I-a B-a O I-b", "B-a B-a O B-b", "IOB1 tags: 2 I-"),
        ("B-a I-a O I-b", "B-a I-a O B-b", "1 I- without a B- before them became B-"),
        ("B-a I-b O", "B-a B-b O", "1 I- without a B- before them became B-"),
        ("B-a L-a U-b O", "B-a I-a B-b O", "tags L, U- became BIO"),
        ("B-a M-a E-a S-b O", "B-a I-a I-a B-b O", "tags E, M, S- became BIO"),
        ("a a O b a", "B-a I-a O B-b B-a", "neighbouring words of one type were taken as one entity"),
        ("B I O B", "B-entity I-entity O B-entity", "taken as of type 'entity'"),
        ("NN VB NN", "NN VB NN", "each word is tagged on its own"),
    ],
)
def test_every_scheme_becomes_bio_and_is_said(tmp_path, tags, expected, remark):
    tags = tags.split()
    path = write(tmp_path / "a.jsonl", [{"tokens": ["w"] * len(tags), "ner_tags": tags}])
    file = tagged(path)
    assert " ".join(file.examples[0].tags) == expected
    assert any(remark in said for said in file.remarks) if remark else len(file.remarks) == 1
    assert set(file.examples[0].tags) <= set(file.labels)


@pytest.mark.parametrize("tags", [["B-a", "b", "O"], ["PER-B", "O"], ["B_PER", "I_PER", "O"], ["B:a", "O"], ["", "O"]])
def test_tags_of_no_scheme_or_of_two_are_refused(tmp_path, tags):
    path = write(tmp_path / "a.jsonl", [{"tokens": ["w"] * len(tags), "tags": tags}])
    assert "is no BIO tag; write B-x, I-x and O" in refused(path)


@given(st.lists(st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=8), max_size=4))
def test_begun_entities_stay_as_they_are(rows):
    begun, count = begin_entities(rows)
    assert begin_entities(begun) == (begun, 0)
    assert sum(a != b for old, new in zip(rows, begun, strict=True) for a, b in zip(old, new, strict=True)) == count
    if any(map(any, rows)):
        assert to_bio(begun, "here")[0] == begun


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 1: 1 tags in 'tags' for 2 words"),
        ({"tokens": ["a"], "tags": None}, "line 1: no list in 'tags' for 1 words"),
        ({"tokens": "a b", "tags": ["O"]}, "line 1: 'tokens' holds 'a b', not a list of words"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "not a list of words"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "None in 'tags' is no tag"),
        ({"tokens": ["a"], "tags": [3]}, "put a labels.json beside the file"),
        ({"text": "a b"}, "no column known as its entities"),
    ],
)
def test_words_and_tags_that_do_not_fit_are_refused(tmp_path, record, message):
    assert message in refused(write(tmp_path / "a.jsonl", [record]))


def test_tags_that_are_numbers_take_the_names_beside_them(tmp_path):
    (tmp_path / "labels.json").write_text('["O", "B-a", "I-a"]')
    file = tagged(write(tmp_path / "a.jsonl", [{"tokens": ["x", "y", "z"], "ner_tags": [1, 2, 0]}]))
    assert file.examples[0].tags == ("B-a", "I-a", "O")
    assert "3 in 'ner_tags' is no tag" in refused(write(tmp_path / "b.jsonl", [{"tokens": ["x"], "ner_tags": [3]}]))


def test_tags_of_a_dataset_take_its_own_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.Sequence(datasets.ClassLabel(names=["O", "B-a"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": names})
    rows = datasets.Dataset.from_dict({"tokens": [["x", "y"]], "ner_tags": [[1, 0]]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "a.parquet")
    for source in (tmp_path / "saved", tmp_path / "a.parquet"):
        assert tagged(source).examples[0].tags == ("B-a", "O")


@pytest.mark.parametrize(
    "entities",
    [
        [{"start": 0, "end": 4, "label": "drug"}, {"start": 11, "end": 15, "label": "body part"}],
        [[11, 15, "body part"], [0, 4, "drug"]],
        {"start": [0, 11], "end": [4, 15], "label": ["drug", "body part"]},
        [
            {"start_offset": 0, "end_offset": 5, "type": "drug", "text": "Aspi"},
            {"start": 10, "end": 15, "type": "body part"},
        ],
    ],
)
def test_entities_by_characters_become_tags_of_words(tmp_path, entities):
    path = write(
        tmp_path / "a.jsonl", [{"text": "Aspi helps head!", "entities": entities}, {"text": "", "entities": []}]
    )
    first, second = tagged(path).examples
    assert first.words == ("Aspi", "helps", "head", "!") and first.text == "Aspi helps head!"
    assert first.tags == ("B-drug", "O", "B-body part", "O") and second.tags == ()


def test_an_entity_that_cuts_a_word_loses_nothing(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "nonHodgkin's lymphoma", "entities": [[3, 21, "x"]]}])
    file = tagged(path)
    assert file.examples[0].words == ("non", "Hodgkin", "'", "s", "lymphoma")
    assert file.examples[0].tags == ("O", "B-x", "I-x", "I-x", "I-x")
    assert "1 words were cut where an entity begins or ends inside them" in file.remarks


def test_of_entities_that_share_characters_the_longest_is_kept(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"text": "New York Times", "spans": [[0, 8, "place"], [0, 14, "paper"], [0, 14, "paper"]]}],
    )
    file = tagged(path, problem="tokens")
    assert file.examples[0].tags == ("B-paper", "I-paper", "I-paper")
    assert "1 entities were left out, because a longer one shares characters with them" in file.remarks


@pytest.mark.parametrize(
    ("entity", "message"),
    [
        ([0, 99, "x"], "the entity 0 to 99 (x) is none in a text of 5 characters"),
        ([3, 3, "x"], "the entity 3 to 3"),
        ([-2, 3, "x"], "the entity -2 to 3"),
        ([2, 3, "x"], "the entity 2 to 3"),
        ([0, 2], "is no entity"),
        ({"start": 0, "end": 2}, "is no entity"),
        ({"start": "0", "end": 2, "label": "x"}, "is no entity"),
        ({"start": 0, "end": 2, "label": "x", "text": "de"}, "says 'de' and the text has 'ab' there"),
    ],
)
def test_an_entity_that_is_not_in_its_text_is_refused(tmp_path, entity, message):
    path = write(tmp_path / "a.jsonl", [{"text": "ab de", "entities": [entity]}])
    assert message in refused(path) and "line 1" in refused(path)


@settings(deadline=None)
@given(text=st.text(max_size=30), places=st.lists(st.integers(0, 30), max_size=6))
def test_whatever_the_entities_their_characters_come_back(text, places):
    entities, before = [], 0
    for start, end in zip(sorted(places)[::2], sorted(places)[1::2], strict=False):
        if before <= start < end <= len(text) and text[start:end].strip():
            entities.append([start, end, "x"])
            before = end
    spans, tags, _, left_out = tags_of_entities(text, entities, "here")
    found = []
    for (start, stop), tag in zip(spans, tags, strict=True):
        if tag.startswith("B-"):
            found.append([start, stop])
        elif tag != "O":
            found[-1][1] = stop
    trimmed = [[s + len(t) - len(t.lstrip()), s + len(t.rstrip())] for s, e, _ in entities for t in [text[s:e]]]
    assert found == trimmed and left_out == 0
    assert "".join(text[start:stop] for start, stop in spans) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, now.", ["Don", "'", "t", "stop", ",", "now", "."]),
        ("我爱NLP。", ["我", "爱", "NLP", "。"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        (" \n", []),
    ],
)
def test_words_are_cut_at_white_space_punctuation_and_between_han_characters(text, words):
    assert [text[start:stop] for start, stop in word_spans(text)] == words


def test_without_tags_texts_words_and_lines_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("Peter says.\n\n")
    (tmp_path / "a.conll").write_text("Peter\nsays\n")
    assert [e.words for e in tagged(tmp_path / "a.txt", labelled=False).examples] == [("Peter", "says", "."), ()]
    assert [e.words for e in tagged(tmp_path / "a.conll", labelled=False).examples] == [("Peter", "says")]
    for record in ({"text": "Peter says"}, {"tokens": ["Peter", "says"], "tags": None}):
        file = tagged(write(tmp_path / "a.jsonl", [record]), labelled=False)
        assert file.examples[0].words == ("Peter", "says") and file.examples[0].tags is None
