"""Questions, passages and answers -> examples: SQuAD's layout, flat columns, and answers that are not where they should be."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import DataError
from modernbert.text.labelled import Columns, read_labelled
from modernbert.text.labelled_answers import place

CONTEXT = "The cat sat. The dog sat."


def asked(answers, **more):
    return {"id": "q", "question": "Who?", "context": CONTEXT, "answers": answers, **more}


def read(path, records, **options):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_labelled(path, "answer", Columns(), **options)


def answers_of(file):
    return [example.answers for example in file.examples]


def test_squad_json_is_read_question_by_question(tmp_path):
    asked = [
        {
            "id": "1",
            "question": "Who?",
            "answers": [{"text": "cat", "answer_start": 4}, {"text": "The cat", "answer_start": 0}],
        },
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "x"}]},
    ]
    article = {"title": "Pets", "paragraphs": [{"context": CONTEXT, "qas": asked}]}
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps({"version": "2.0", "data": [article]}, indent=indent))
        file = read_labelled(tmp_path / "a.json", "answer")
        assert answers_of(file) == [(("cat", 4), ("The cat", 0)), ()]
        assert [example.id for example in file.examples] == ["1", "2"]
        assert (file.problem, file.labels) == ("spans", [])
        assert "1 of 2 questions have no answer in their passage, and say so" in file.remarks
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [{"qas": asked}]}]}))
    with pytest.raises(DataError, match="begins as SQuAD and goes on otherwise"):
        read_labelled(tmp_path / "a.json", "answer")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"text": ["cat", "dog"], "answer_start": [4, 17]}, (("cat", 4), ("dog", 17))),
        ({"text": [], "answer_start": []}, ()),
        ({"text": [""], "answer_start": [-1]}, ()),
        ([{"text": "dog", "answer_start": 17}], (("dog", 17),)),
        ([], ()),
        ("dog", (("dog", 17),)),
        (["dog", "cat"], (("dog", 17), ("cat", 4))),
    ],
)
def test_flat_answers_are_read_in_every_usual_form(tmp_path, answers, expected):
    file = read(tmp_path / "a.jsonl", [asked(answers)])
    assert answers_of(file) == [expected]
    assert any("without an offset" in remark for remark in file.remarks) == isinstance(
        answers[0] if isinstance(answers, list) and answers else answers, str
    )


def test_answers_come_from_csv_too(tmp_path):
    (tmp_path / "a.csv").write_text(f"question,context,answer,answer_start\nWho?,{CONTEXT},sat,21\nWhy?,{CONTEXT},,\n")
    assert answers_of(read_labelled(tmp_path / "a.csv", "answer")) == [(("sat", 21),), ()]


def test_an_impossible_question_has_no_answer_whatever_is_given(tmp_path):
    file = read(tmp_path / "a.jsonl", [asked({"text": ["cat"], "answer_start": [4]}, is_impossible=True)])
    assert answers_of(file) == [()]


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [("sat", 8, 8), ("sat", 9, 8), ("sat", 17, 21), ("sat", 9999, 21), ("sat", -5, 8), ("The", 1, 0), ("dog", 0, 17)],
)
def test_an_answer_that_is_not_at_its_offset_is_taken_at_the_nearest_place(tmp_path, text, start, expected):
    file = read(tmp_path / "a.jsonl", [asked({"text": [text], "answer_start": [start]})])
    assert answers_of(file) == [((text, expected),)]
    assert any("1 answers were not at their offset" in remark for remark in file.remarks) == (start != expected)


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=3), st.integers(-3, 15))
def test_the_nearest_place_is_the_one_that_a_search_of_all_finds(context, text, start):
    everywhere = [found for found in range(len(context)) if context.startswith(text, found)]
    found = place(context, text, start, Counter())
    if not everywhere:
        assert found is None
    else:
        assert abs(found[1] - start) == min(abs(one - start) for one in everywhere) and found[1] in everywhere


def test_an_answer_that_is_nowhere_is_left_out_and_its_question_with_it(tmp_path):
    records = [
        asked({"text": ["cow"], "answer_start": [4]}, id="a"),
        asked({"text": ["cow", "dog"], "answer_start": [4, 17]}, id="b"),
        asked({"text": [], "answer_start": []}, id="c"),
    ]
    file = read(tmp_path / "a.jsonl", records)
    assert [(example.id, example.answers) for example in file.examples] == [("b", (("dog", 17),)), ("c", ())]
    (remark,) = [remark for remark in file.remarks if "nowhere" in remark]
    assert remark.startswith("2 answers are nowhere in their passage and were left out, 1 questions with them (first: ")
    with pytest.raises(DataError, match=r"line 1: the answer is not in its passage, nor is any other of 1 questions"):
        read(tmp_path / "a.jsonl", records[:1])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, r"line 1: no answers in 'answers' \(1 rows are so\); an empty list says"),
        (3, "is no answer"),
        ({"text": ["cat"], "answer_start": ["four"]}, "is no answer"),
        ([{"answer_start": 3}], "is no answer"),
    ],
)
def test_answers_of_no_known_form_are_refused(tmp_path, answers, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl", [asked(answers)])


def test_ids_that_occur_twice_are_told_apart_and_missing_ones_are_numbers(tmp_path):
    records = [asked([], id=name) for name in ("q", "q", None, "q-2", 7)]
    file = read(tmp_path / "a.jsonl", records)
    assert [example.id for example in file.examples] == ["q", "q-3", "2", "q-2", "7"]
    assert "1 ids occur again; the later ones got a number behind them" in file.remarks


def test_without_answers_none_are_asked_for(tmp_path):
    for record in ({"question": "Who?", "context": CONTEXT}, asked(None)):
        file = read(tmp_path / "a.jsonl", [record], labelled=False)
        assert answers_of(file) == [None] and "answers" not in file.columns
    with pytest.raises(DataError, match="no column is known as the answers"):
        read(tmp_path / "a.jsonl", [{"question": "Who?", "context": CONTEXT}])


def test_empty_questions_and_passages_are_kept_and_counted(tmp_path):
    file = read(tmp_path / "a.jsonl", [{"question": "", "context": " ", "answers": []}])
    assert answers_of(file) == [()]
    assert sum("are empty; they are kept" in remark for remark in file.remarks) == 2
