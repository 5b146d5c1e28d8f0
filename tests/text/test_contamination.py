"""Training text that repeats a long stretch of an evaluation text is found, whatever stands around it."""

import json

import pytest

from modernbert.errors import ConfigError, DataError
from modernbert.text.contamination import EvaluationTexts

QUESTION = "Which of the two rivers that meet below the old town carries more water in the dry season of a common year?"
CHINESE = "两条河流在古城下方汇合，其中哪一条在普通年份的旱季水量更大，请根据下面的文章内容回答这个问题"


@pytest.fixture
def texts():
    return EvaluationTexts.of([("q1", QUESTION), ("q2", CHINESE), ("q3", "too short")])


def test_a_copy_is_found_whatever_its_case_marks_and_neighbours(texts):
    copied = QUESTION.upper().replace(" ", "\n  ").replace("?", " -- !")
    assert texts.find(f"Page 7. {copied} The answer is on page 9.") == "q1"
    assert texts.find(f"第七页。{CHINESE}。答案在第九页。") == "q2"
    assert texts.find(f"A page in English that quotes {CHINESE} in full.") == "q2"


@pytest.mark.parametrize("count", [12, 13])
def test_thirteen_words_in_a_row_are_a_copy_and_twelve_are_not(texts, count):
    start = QUESTION.split()[3 : 3 + count]
    assert texts.find("before " + " ".join(start) + " after") == ("q1" if count == 13 else None)


@pytest.mark.parametrize("count", [25, 26])
def test_twenty_six_characters_in_a_row_are_a_copy_in_a_script_without_spaces(texts, count):
    found = texts.find("前" + CHINESE.replace("，", "")[:count] + "后")
    assert found == ("q2" if count == 26 else None)


def test_the_same_words_in_another_order_are_no_copy(texts):
    assert texts.find(" ".join(reversed(QUESTION.split()))) is None
    assert texts.find("") is None and texts.find("too short") is None


def test_texts_too_short_to_look_for_are_told_of(texts):
    (remark,) = texts.remarks()
    assert remark.startswith("1 of 3 evaluation texts")
    assert EvaluationTexts.of([("q1", QUESTION)]).remarks() == []


def test_files_are_read_by_field_and_plain_text_by_paragraph(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": QUESTION, "answer": " ".join("abcdefghijklmnop")}) + "\n")
    both = EvaluationTexts.read([tmp_path / "a.jsonl"], fields=("question", "answer"))
    assert both.find(QUESTION) and both.find("a b c d e f g h i j k l m n")
    assert EvaluationTexts.read([tmp_path / "a.jsonl"], fields=("answer",)).find(QUESTION) is None
    (tmp_path / "b.txt").write_text(f"One.\n\n{QUESTION.replace(' the', chr(10) + 'the')}\n")
    found = EvaluationTexts.read([tmp_path / "b.txt"])
    assert found.find(QUESTION) == f"{tmp_path / 'b.txt'}#1" and len(found.names) == 1
    with pytest.raises(DataError, match="the field 'text' is not there"):
        EvaluationTexts.read([tmp_path / "a.jsonl"])


def test_sets_of_different_fields_are_read_together(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ({"question": None}, {"question": QUESTION}))
    )
    (tmp_path / "b.jsonl").write_text(json.dumps({"premise": " ".join("abcdefghijklmnop")}) + "\n")
    found = EvaluationTexts.read([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], fields=("question", "premise"))
    assert found.find(QUESTION) and found.find("a b c d e f g h i j k l m n")
    (tmp_path / "c.jsonl").write_text(json.dumps({"other": QUESTION}) + "\n")
    with pytest.raises(DataError, match=r"c\.jsonl, line 1: the fields 'question' and 'premise' are not there"):
        EvaluationTexts.read([tmp_path], fields=("question", "premise"))


def test_nothing_to_look_for_is_refused():
    with pytest.raises(DataError, match=r"no evaluation text has 13 words \(1 are shorter\)"):
        EvaluationTexts.of([("q", "too short")])
    with pytest.raises(ConfigError, match="decontaminate_words=3 is too small"):
        EvaluationTexts.read([], num_words=3)
