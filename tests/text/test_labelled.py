"""Labelled files -> texts with labels: every format, the guesses that are made, and every way in which labels can be bad."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from modernbert.errors import DataError, UnsupportedError
from modernbert.text.examples import TextExample
from modernbert.text.labelled import Columns, read_labelled

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
ROWS = [{"text": "good", "label": "pos"}, {"text": "bad, very", "label": "neg"}, {"text": "ok\n\nso", "label": "pos"}]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def labels_file(folder, labels, texts=None, **more):
    texts = texts or [f"text {n}" for n in range(len(labels))]
    return write(folder / "a.jsonl", [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)])


def labels_of(file):
    return [example.label for example in file.examples]


def refused(path, kind="classify", columns=None, **options):
    with pytest.raises(DataError) as error:
        read_labelled(path, kind, columns or Columns(), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def as_json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows, separator=","):
    lines = [separator.join(rows[0]), *(separator.join(f'"{value}"' for value in row.values()) for row in rows)]
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.jsonl", as_json_lines(ROWS)),
        ("a.json", as_json_lines(ROWS)),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps({"data": ROWS}, indent=1).encode()),
        ("a.csv", b"\xef\xbb\xbf" + as_csv(ROWS)),
        ("a.csv", as_csv(ROWS, ";")),
        ("A.TSV", as_csv(ROWS, "\t")),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path, ending, name, raw):
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESS[ending](raw))
    file = read_labelled(path, "classify")
    assert [(example.text, example.label) for example in file.examples] == [tuple(row.values()) for row in ROWS]
    assert all(example.where.startswith(str(path)) for example in file.examples)
    assert (file.columns, file.problem, file.labels) == ({"text": "text", "label": "label"}, "single", ["neg", "pos"])
    assert file.remarks[0] == "columns: text = 'text', label = 'label'"


def test_parquet_gives_the_same_and_the_names_that_datasets_wrote_into_it(tmp_path):
    table = pyarrow.table({"text": [row["text"] for row in ROWS], "label": [1, 0, 1]})
    told = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(told)}), tmp_path / "a.parquet"
    )
    file = read_labelled(tmp_path / "a.parquet", "classify")
    assert labels_of(file) == ["pos", "neg", "pos"] and file.examples[1].where == f"{tmp_path / 'a.parquet'}, row 1"
    assert any("named by" in remark and "0 = neg" in remark for remark in file.remarks)


def test_a_dataset_is_read_by_its_address_or_its_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "saved")
    for source in (f"hf:{tmp_path / 'saved'}", tmp_path / "saved"):
        assert labels_of(read_labelled(source, "classify")) == ["yes", "no"]
    assert labels_of(read_labelled(f"hf:{tmp_path / 'saved'}@test", "classify", problem="single")) == ["yes"]


def test_a_name_that_is_no_file_is_a_dataset_unless_it_ends_as_a_file(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("modernbert.text.labelled_open._dataset", lambda address: asked.append(str(address)) or 1 / 0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        read_labelled("org/name:en@dev", "classify")
    assert asked == ["hf:org/name:en@dev"]
    assert "no such file" in refused("org/name.jsonl")


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b'{"text": "a", "label": "x"}\n{"text": "b"\n', "line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "a", "label": "x"}\n["b"]\n', "line 2: a JSON list, not an object"),
        ("a.jsonl", b'{"text": "a", "label": "x"}\n{"text": "\xff", "label": "y"}\n', "line 2: broken UTF-8"),
        ("a.csv", b"text,label\na,x\n\xff,y\n", "line 3: broken UTF-8"),
        ("a.csv", b"text,label\na,x\nb,y,z\n", "line 3: a row of 3 fields under a header of 2"),
        ("a.csv", b"text,text\na,x\n", "two columns are named 'text'"),
        ("a.json", b"3", "no list of objects in it"),
        ("a.jsonl", b"", "no examples in it"),
        ("a.csv", b"text,label\n", "no examples in it"),
        ("a.txt", b"one\n", "is no kind of file that holds labels"),
        ("a.parquet", b"PAR1 and no more", "cut short or damaged"),
        ("a.jsonl.gz", b"\x1f\x8b", "cut short or damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    assert message in refused(tmp_path / name)


def test_broken_utf8_in_parquet_is_refused_with_its_row(tmp_path):
    column = pyarrow.array([b"fine", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column, "label": ["a", "b"]}), tmp_path / "a.parquet")
    assert "column 'text' has broken UTF-8 in row 1" in refused(tmp_path / "a.parquet")


def test_half_a_surrogate_pair_becomes_one_character_and_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83db", "label": "x"}\n{"text": "\\ud83d\\ude00", "label": "y"}\n')
    file = read_labelled(path, "classify")
    assert [example.text for example in file.examples] == ["a\ufffdb", "😀"]
    assert "1 halves of surrogate pairs became U+FFFD" in file.remarks


def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'modernbert\[parquet\]'"):
        read_labelled(tmp_path / "a.parquet", "classify")


@pytest.mark.parametrize(
    ("kind", "record", "expected"),
    [
        ("classify", {"Sentence": "a", "Label": "x"}, {"text": "Sentence", "label": "Label"}),
        ("classify", {"title": "b", "text": "a", "label": "x"}, {"text": "text", "label": "label"}),
        ("classify", {"text": "a", "label": 1, "label_name": "x"}, {"text": "text", "label": "label_name"}),
        ("classify", {"text": "a", "label": "x", "label_name": "y"}, {"text": "text", "label": "label"}),
        ("classify", {"id": 3, "review": "a", "sentiment": "x"}, {"text": "review", "label": "sentiment"}),
        ("classify", {"satz": "a", "label": "x"}, {"text": "satz", "label": "label"}),
        ("classify", {"text": "a", "klasse": "x"}, {"text": "text", "label": "klasse"}),
        ("pair", {"sentence1": "a", "sentence2": "b", "label": "x"}, {"text": "sentence1", "pair": "sentence2"}),
        ("pair", {"hypothesis": "b", "premise": "a", "label": "x"}, {"text": "premise", "pair": "hypothesis"}),
        ("pair", {"question": "a", "context": "b", "label": "x"}, {"text": "question", "pair": "context"}),
        ("pair", {"query": "a", "code": "b", "label": "x"}, {"text": "query", "pair": "code"}),
    ],
)
def test_columns_are_guessed_by_their_names_and_said(tmp_path, kind, record, expected):
    file = read_labelled(write(tmp_path / "a.jsonl", [record, record]), kind, problem="single")
    assert {role: file.columns[role] for role in expected} == expected
    assert all(f"{role} = {column!r}" in file.remarks[0] for role, column in expected.items())
    assert file.examples[0].text == "a" and file.examples[0].pair == (None if kind == "classify" else "b")
    assert file.examples[0].label in ("x",)


def test_of_two_columns_that_would_do_the_first_is_taken_and_the_other_is_said(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a", "intent": "x", "topic": "y"}] * 2)
    (remark,) = read_labelled(path, "classify", problem="single").remarks
    assert remark == "columns: text = 'text', label = 'intent'; 'topic' would do, too (--label-column)"
    named = read_labelled(path, "classify", Columns(label="topic"), problem="single")
    assert labels_of(named) == ["y", "y"]


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        (
            "classify",
            Columns(),
            "no column is known as the text (such as text, sentence, content); its columns are a, b, c",
        ),
        ("classify", Columns(text="a"), "no column is known as the label"),
        ("classify", Columns(text="z"), "no column 'z'; its columns are a, b, c: say --text-column"),
        ("classify", Columns(pair="a"), "--pair-column is not read for classify"),
        ("pair", Columns(), "say --text-column and --pair-column"),
        ("tag", Columns(), "say --text-column with one of them; or --words-column"),
        ("answer", Columns(), "say --question-column"),
    ],
)
def test_a_guess_that_fails_names_the_columns_and_the_option(tmp_path, kind, columns, message):
    assert message in refused(write(tmp_path / "a.jsonl", [{"a": "1", "b": "2", "c": "3"}]), kind, columns)


def test_two_texts_a_row_are_pointed_to_the_task_for_pairs(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"premise": "a", "hypothesis": "b", "label": "x"}])
    assert "or take the task pair, for premise and hypothesis" in refused(path)


@pytest.mark.parametrize(
    ("labels", "problem", "expected", "names"),
    [
        ([10, 2, 10], "single", ["10", "2", "10"], ["2", "10"]),
        ([0.0, 1.0], "single", ["0", "1"], ["0", "1"]),
        ([0.5, 1, 2.0], "regression", [0.5, 1.0, 2.0], []),
        ([True, False], "single", ["true", "false"], ["false", "true"]),
        ([" b ", "a"], "single", ["b", "a"], ["a", "b"]),
        ([["b", "a", "b"], [], ["c"]], "multi", [("b", "a"), (), ("c",)], ["a", "b", "c"]),
        ([[1], [0, 2]], "multi", [("1",), ("0", "2")], ["0", "1", "2"]),
        ([-2, -1, 0], "single", ["-2", "-1", "0"], ["-2", "-1", "0"]),
    ],
)
def test_labels_are_text_unless_a_number_is_to_be_predicted(tmp_path, labels, problem, expected, names):
    file = read_labelled(labels_file(tmp_path, labels), "classify")
    assert (file.problem, labels_of(file), file.labels) == (problem, expected, names)
    assert [type(label) for label in labels_of(file)] == [type(label) for label in expected]


@pytest.mark.parametrize(
    ("labels", "problem", "expected"),
    [
        (["1", "0"], "single", ["1", "0"]),
        (["1", "0.5"], "regression", [1.0, 0.5]),
        (["1", "x"], "single", ["1", "x"]),
        (["1.0", "2.0"], "single", ["1", "2"]),
        (["-1.5e-05", ".5"], "regression", [-1.5e-05, 0.5]),
        (["2e+16", "-2"], "single", ["20000000000000000", "-2"]),
    ],
)
def test_numbers_in_csv_are_known_as_such(tmp_path, labels, problem, expected):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels))
    file = read_labelled(tmp_path / "a.csv", "classify")
    assert (file.problem, labels_of(file)) == (problem, expected)
    assert any("look like numbers" in remark for remark in file.remarks) == ("x" in labels)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["007", "7", "010", "1_0"], "1 of 4 labels look like numbers; all are taken as text"),
        (["001", "10"], "1 of 2 labels look like numbers; all are taken as text"),
        (["001", "002"], None),
        (["007.0", "7x"], None),
        (["-0", "+0"], None),
        (["1e5", "2e5"], None),
        (["٣", "４"], None),
        (["9" * 30, "9" * 29 + "8"], None),
        (["nan", "rice", "inf", "-Infinity"], None),
        (["NaN", "rice", "3"], "1 of 3 labels look like numbers; all are taken as text"),
    ],
)
def test_labels_in_csv_that_only_look_like_numbers_stay_as_they_are(tmp_path, suffix, labels, said):
    separator = "," if suffix == "csv" else "\t"
    path = tmp_path / f"a.{suffix}"
    path.write_text(f"text{separator}label\n" + "".join(f"a{separator}{label}\n" for label in labels))
    file = read_labelled(path, "classify")
    assert (file.problem, labels_of(file)) == ("single", labels)
    assert [remark for remark in file.remarks if "look like numbers" in remark] == ([said] if said else [])


def test_lines_of_json_are_let_go_as_they_are_read(tmp_path, monkeypatch):
    path, gone, most = write(tmp_path / "a.jsonl", ROWS * 5), [], 0

    class Line(bytes):
        def __del__(self):
            gone.append(1)

    def lines_of(*_):
        nonlocal most
        for number, raw in enumerate(path.read_bytes().splitlines(), 1):
            yield number, Line(raw)
            most = max(most, number - len(gone))

    monkeypatch.setattr("modernbert.text.labelled_open.numbered_lines", lines_of)
    assert len(read_labelled(path, "classify").examples) == 15
    assert most <= 2 and len(gone) == 15


@pytest.mark.parametrize("names", [["World", "Sports"], {"0": "World", "1": "Sports"}])
def test_numbers_take_the_names_of_the_file_beside_them(tmp_path, names):
    (tmp_path / "labels.json").write_text(json.dumps(names))
    file = read_labelled(labels_file(tmp_path, [1, 0, 1]), "classify")
    assert labels_of(file) == ["Sports", "World", "Sports"] and file.labels == ["Sports", "World"]
    assert any("labels.json: 0 = World" in remark for remark in file.remarks)
    assert "label 7 in 'label' has no name" in refused(labels_file(tmp_path, [1, 7]))
    assert labels_of(read_labelled(labels_file(tmp_path, ["b", "a"]), "classify")) == ["b", "a"]


def test_a_file_of_names_that_is_something_else_is_refused(tmp_path):
    (tmp_path / "labels.json").write_text('{"a": {"b": 1}}')
    assert "labels.json is neither a list of names" in refused(labels_file(tmp_path, [1, 0]))


def test_rows_whose_label_is_hidden_are_left_out_and_counted(tmp_path):
    file = read_labelled(labels_file(tmp_path, [0, -1, 1, -1]), "classify")
    assert labels_of(file) == ["0", "1"] and [example.text for example in file.examples] == ["text 0", "text 2"]
    assert any(remark.startswith("2 of 4 rows left out: their label is -1") for remark in file.remarks)
    for problem in (None, "single", "regression"):
        assert "every label in 'label' is -1: it is hidden" in refused(labels_file(tmp_path, [-1, -1]), problem=problem)
    (tmp_path / "labels.json").write_text('{"-1": "negative", "0": "neutral", "1": "positive"}')
    file = read_labelled(labels_file(tmp_path, [0, -1, 1]), "classify")
    assert labels_of(file) == ["neutral", "negative", "positive"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, None], "line 2: no label in 'label' (2 of 3 rows are so)"),
        ([0.5, float("nan"), 1], "line 2: nan as label in 'label' (1 of 3 rows are so)"),
        ([0.5, float("inf")], "line 2: inf as label"),
        (["a", " "], "line 2: an empty label"),
        ([["a"], ["b", None]], "line 2: ['b', None] as label"),
        (["a", 1, "b"], "mixed types in 'label': 'a' (line 1) and 1 (line 2)"),
        ([1, "a"], "mixed types in 'label': 1 (line 1) and 'a' (line 2)"),
        ([1, True], "mixed types"),
        (["a", ["a"]], "mixed types"),
        (["a", "a"], "every label in 'label' is the same ('a')"),
        ([["a"], ["a"]], "every label in 'label' is the same"),
        ([0.0, 0.0], "every label in 'label' is the same ('0')"),
        ([[], []], "every label in 'label' is the same"),
        ([[0, 1, 0], [1, 1, 0]], "holds a 0 or 1 for each class"),
        ([-1, 1, 1], "is the same ('1'); 1 of 3 rows left out: their label is -1"),
        ([[0.5], [1]], "0.5 among the labels"),
        ([{"a": 1}, {"a": 2}], "the label in 'label' is a dict"),
    ],
)
def test_labels_that_could_be_wrong_are_refused(tmp_path, labels, message):
    assert message in refused(labels_file(tmp_path, labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", ""], "an empty label in 'label'"),
        (["1", ""], "no label in 'label'"),
        (["0.5", "x"], "mixed types"),
        (["0.5", "nan"], "nan as label"),
        (["1", "nan", "0"], "line 3: nan as label in 'label' (1 of 3 rows are so)"),
        (["1", "-Infinity"], "-inf as label"),
        (["1.5", "1e+999"], "inf as label"),
        (["nan", "NaN"], "nan as label in 'label' (2 of 2 rows are so)"),
        (["nan", ""], "nan as label in 'label' (2 of 2 rows are so)"),
        (["", " "], "no label in 'label' (2 of 2 rows are so)"),
        (["0.5", "007"], "mixed types"),
    ],
)
def test_labels_in_csv_that_could_be_wrong_are_refused(tmp_path, labels, message):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels))
    assert message in refused(tmp_path / "a.csv")
    if "mixed" not in message:
        assert message in refused(tmp_path / "a.csv", problem="single")  # as in a test file, which may have one class


def test_a_class_with_one_example_is_said(tmp_path):
    file = read_labelled(labels_file(tmp_path, ["a", "b", "a"]), "classify")
    assert "1 of 2 classes has one example only: 'b'" in file.remarks


def test_a_second_file_is_read_as_the_first_was(tmp_path):
    assert labels_of(read_labelled(labels_file(tmp_path, [5, 3]), "classify", problem="regression")) == [5.0, 3.0]
    assert labels_of(read_labelled(labels_file(tmp_path, ["a", "a"]), "classify", problem="single")) == ["a", "a"]
    assert labels_of(read_labelled(labels_file(tmp_path, [0.5, 1]), "classify", problem="single")) == ["0.5", "1"]
    for labels, problem in ((["a", "b"], "regression"), (["a", "b"], "multi"), ([["a"], ["b"]], "single")):
        assert "as in the file trained on" in refused(labels_file(tmp_path, labels), problem=problem)


def test_an_empty_text_is_kept_and_counted_and_a_missing_one_refused(tmp_path):
    file = read_labelled(labels_file(tmp_path, ["a", "b"], ["", "x"]), "classify")
    assert [example.text for example in file.examples] == ["", "x"]
    assert "1 of 2 texts in 'text' are empty; they are kept" in file.remarks
    assert "line 2: no text in 'text' (1 of 2 rows are so)" in refused(labels_file(tmp_path, ["a", "b"], ["x", None]))
    assert "line 1: 'text' holds a int, not a text" in refused(labels_file(tmp_path, ["a", "b"], [3, "x"]))


def test_without_labels_nothing_is_asked_of_them(tmp_path):
    for record in ({"text": "a"}, {"text": "a", "label": None}, {"text": "a", "label": -1}, {"satz": "a"}):
        file = read_labelled(write(tmp_path / "a.jsonl", [record]), "classify", labelled=False)
        assert [(example.text, example.label) for example in file.examples] == [("a", None)]
        assert "label" not in file.columns and file.labels == []
    pairs = write(tmp_path / "a.jsonl", [{"premise": "a", "hypothesis": "b"}])
    assert read_labelled(pairs, "pair", labelled=False).examples[0].pair == "b"
    assert "no column is known as the label" in refused(write(tmp_path / "a.jsonl", [{"text": "a", "x": 1, "y": 2}]))


def test_a_plain_file_is_a_text_a_line_where_no_labels_are_wanted(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\n\nzwei ü\n".encode())
    file = read_labelled(tmp_path / "a.txt", "classify", labelled=False)
    assert [example.text for example in file.examples] == ["one", "", "zwei ü"]
    assert file.examples[2] == TextExample(text="zwei ü", where=f"{tmp_path / 'a.txt'}, line 3")


PAIRS = {"mrpc", "rte", "stsb", "qnli", "wnli", "ax", "snli", "pubmedqa", "cosqa_pairs"}
HIDDEN = {"ax/test", "cola/test", "qnli/test", "rte/test", "wnli/test"}


def shared_files():
    """(kind, file) of each labelled set."""
    for path in sorted(SHARED.rglob("*.parquet")):
        name = path.relative_to(SHARED).parts[0]
        kind = "tag" if name.startswith("ner_") else "answer" if name.startswith("qa_") else "classify"
        if name != "code_docstring_python":  # pairs without labels
            yield "pair" if path.parent.name in PAIRS else kind, path


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.parametrize(
    ("least", "most"), [(0, 60_000), pytest.param(60_000, 10**9, marks=pytest.mark.slow)], ids=["small", "large"]
)
def test_every_labelled_set_is_read_whole_with_its_columns_guessed(least, most):
    files = [(kind, path) for kind, path in shared_files() if least <= path.stat().st_size < most]
    assert len(files) > 15
    for kind, path in files:
        if f"{path.parent.name}/{path.stem}" in HIDDEN:
            assert "is hidden" in refused(path, kind)
            file = read_labelled(path, kind, labelled=False)
        else:
            file = read_labelled(path, kind)
            assert len(file.labels) >= 2 or file.problem in ("regression", "spans")
            assert not any("answers were" in remark or "answers are" in remark for remark in file.remarks)
        assert len(file.examples) == pyarrow.parquet.read_metadata(path).num_rows
