"""csv, tsv, parquet and datasets -> documents, their scores, and every way in which a table can be bad."""

import csv
import gzip
import io
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.errors import DataError, UnsupportedError
from modernbert.text.datasets import Address
from modernbert.text.read import Skips, digest_of, iter_documents

COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
WORDS = st.text(st.characters(exclude_characters="\r\0", codec="utf-8"), max_size=20)


def texts(paths, **options):
    return [document.text for document in iter_documents(paths, **options)]


def as_csv(rows, **options):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **options).writerows(rows)
    return out.getvalue().encode()


def write_parquet(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("a.csv", b"id,text\n1,one\n\n2,two\n", ["one", "two"]),
        ("a.csv", b'\xef\xbb\xbftext,id\r\n"one\r\n\r\nmore, ""quoted""",1\r\n', ['one\n\nmore, "quoted"']),
        ("a.csv", b"id;text\n1;one, two\n", ["one, two"]),
        ("a.csv", b"text\none; two\n", ["one; two"]),
        ("a.tsv", b"id\ttext\n1\tone, two\n", ["one, two"]),
        ("a.csv", b"id,text\n1,\n", [""]),
        ("a.csv", b"id,text\n", []),
    ],
)
def test_each_row_of_a_table_is_a_document(tmp_path, ending, name, raw, expected):
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESS[ending](raw))
    assert texts(path) == expected
    assert texts(tmp_path, documents="paragraph") == expected


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(WORDS, WORDS), max_size=8), separator=st.sampled_from(",;\t"))
def test_whatever_a_csv_writer_quotes_comes_back(tmp_path_factory, rows, separator):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(as_csv([("other", "text"), *rows], delimiter=separator))
    assert texts(path) == [text for _, text in rows]


def test_a_field_longer_than_a_block_comes_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("modernbert.text.blocks._BLOCK_BYTES", 100)
    long = "a line\n" * 30_000  # beyond the csv module's own limit too
    (tmp_path / "a.csv").write_bytes(as_csv([("text",), (long,), ("short",)]))
    assert texts(tmp_path) == [long, "short"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"body,title\nx,y\n", "line 1: the field 'text' is not there; .* are body, title: say --text-field body"),
        (b"id,text\n1,one\n2,two,three\n", "line 3: a row of 3 fields under a header of 2"),
        (b'id,text\n1,"one\n2,two\n', "line 3: unexpected end of data; .*a quote it does not close"),
        (b'id,text\n1,"one" two\n', "line 2: .*double a quote inside quotes"),
        ("id,text\n1,one\n".encode("utf-16"), "NUL bytes"),
        (b"id,text\r1,one\r2,two\r", r"its lines end as on old Macs, in \\r alone; save it with"),
    ],
)
def test_a_table_read_askew_is_refused_with_its_line_and_a_remedy(tmp_path, raw, message):
    path = tmp_path / "a.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        texts(path)


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("modernbert.text.tables._MAX_FIELD_CHARS", 1000)
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,"one\n' + b"2,two\n" * 10_000)
    with pytest.raises(DataError, match=r"line 1\d\d: field larger than field limit \(1000\)"):
        texts(path)


def test_broken_utf8_drops_the_row_and_is_counted(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,good\n2,bad \xff\xfe\n\xff,good too\n")
    column = pyarrow.array([b"fine", b"\xff", b"fine too"], pyarrow.binary()).view(pyarrow.string())
    write_parquet(tmp_path / "b.parquet", {"text": column})
    skips = Skips()
    assert texts(tmp_path, on_skip=skips.add) == ["good", "good too", "fine", "fine too"]
    assert skips.counts == {"broken UTF-8": 2}
    assert "a.csv, line 3" in str(skips) and "b.parquet, row 1" in str(skips)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), "dictionary", pyarrow.string_view()])
@settings(deadline=None, max_examples=10)
@given(rows=st.lists(WORDS, max_size=200), group=st.integers(1, 70))
def test_parquet_gives_its_rows_in_order_whatever_the_row_groups(tmp_path_factory, kind, rows, group):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    column = pyarrow.array(rows, pyarrow.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    write_parquet(path, {"text": column, "other": list(range(len(rows)))}, row_group_size=group)
    assert texts(path) == rows
    assert [document.position for document in iter_documents(path)] == list(range(len(rows)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n": [1], "body": ["x"]}, "'text' is not there; the fields are n, body: say --text-field body"),
        ({"text": [1, 2]}, "row 0: the field 'text' holds a int, not text"),
    ],
)
def test_parquet_without_the_text_is_refused_with_its_columns(tmp_path, columns, message):
    write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=message):
        texts(tmp_path)


def test_a_row_of_parquet_without_text_is_left_out_and_counted(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": [None, "one", None, "two"]})
    skips = Skips()
    assert texts(tmp_path, on_skip=skips.add) == ["one", "two"]
    assert skips.as_dict()["no text"]["examples"] == [f"{tmp_path / 'a.parquet'}, row {row}" for row in (0, 2)]


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-9], lambda raw: raw[9:], lambda raw: b"", lambda raw: raw[:4] + b"\7" * 500 + raw[504:]],
)
def test_a_damaged_parquet_file_is_refused(tmp_path, damage):
    path = tmp_path / "a.parquet"
    write_parquet(path, {"text": [f"{number:x}" * 9 for number in range(2000)]})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.parquet is cut short or damaged after [\d,]+ documents"):
        texts(path)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_parquet_file(tmp_path):
    rows = [f"{number:064d}" * 30 for number in range(60_000)]  # 115 MB in one row group
    write_parquet(tmp_path / "a.parquet", {"text": rows}, compression="none", use_dictionary=False)
    code = (
        "import resource, pyarrow.parquet\n"
        "from modernbert.text.read import iter_documents\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        f"before = peak(); count = sum(1 for _ in iter_documents({str(tmp_path)!r})); print(count, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, megabytes = map(int, done.stdout.split())
    assert count == 60_000 and megabytes < 80


def test_every_kind_of_record_carries_its_score(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "quality": 1}))
    (tmp_path / "b.csv").write_text("quality,text\n0.5,b\n")
    write_parquet(tmp_path / "c.parquet", {"text": ["c"], "quality": pyarrow.array([-2], pyarrow.int8())})
    found = list(iter_documents(tmp_path, score_field="quality"))
    assert [(document.text, document.score) for document in found] == [("a", 1.0), ("b", 0.5), ("c", -2.0)]
    assert [document.score for document in iter_documents(tmp_path)] == [None] * 3


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "a", "n": 3}',
            "line 1: the field 'quality' is not there; .*text, n: say --score-field n",
        ),
        ("a.jsonl", b'{"text": "a", "quality": "3"}', "'quality' holds a str, not a finite number"),
        ("a.jsonl", b'{"text": "a", "quality": true}', "holds a bool, not a finite number"),
        ("a.jsonl", b'{"text": "a", "quality": NaN}', "holds nan, not a finite number"),
        ("a.jsonl", b'{"text": "a", "quality": 1' + b"0" * 400 + b"}", "holds a int, not a finite number"),
        ("a.jsonl", b'{"text": "a", "quality": 1e39}', r"holds 1e\+39, not a finite number of 32 bits"),
        ("a.csv", b"text,quality\na,-3.5e38\n", "line 2: the field 'quality' holds -3.5e\\+38, not a finite number"),
        ("a.csv", b"text,n\na,3\n", "line 1: the field 'quality' is not there"),
        ("a.csv", b"text,quality\na,good\n", "line 2: the field 'quality' holds a str, not a finite number"),
        ("a.txt", b"plain", "plain text has no field 'quality'"),
    ],
)
def test_a_score_that_is_no_number_is_refused(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        texts(tmp_path, score_field="quality")


def test_the_digest_notices_another_file_and_nothing_else(tmp_path):
    (tmp_path / "a.csv").write_text("text\none\n")
    first = digest_of(tmp_path)
    (tmp_path / ".hidden.csv").write_text("text\n")
    assert digest_of([tmp_path]) == first
    (tmp_path / "b.csv").write_text("text\n")
    assert digest_of(tmp_path) != first
    assert digest_of(tmp_path, exclude=["b.*"]) == first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/name", ("org/name", None, "train", None)),
        ("hf:org/name:en@test", ("org/name", "en", "test", None)),
        ("hf:./folder@validation#v1.0", ("./folder", None, "validation", "v1.0")),
    ],
)
def test_a_dataset_address_names_config_split_and_revision(text, expected):
    address = Address.parse(text)
    assert (address.name, address.config, address.split, address.revision) == expected


@pytest.mark.parametrize("text", ["hf:", "hf:a@b:c", "hf:a@b@c", "hf:@train"])
def test_a_bad_dataset_address_is_refused(text):
    with pytest.raises(DataError, match=r"write hf:NAME\[:CONFIG\]\[@SPLIT\]"):
        iter_documents(text)


@pytest.fixture
def saved(tmp_path):
    """A dataset of two splits, as `save_to_disk` writes it."""
    datasets = pytest.importorskip("datasets")
    splits = {name: {"text": [f"{name} {n}" for n in range(5)], "stars": range(5)} for name in ("train", "test")}
    folder = tmp_path / "saved"
    datasets.DatasetDict({name: datasets.Dataset.from_dict(rows) for name, rows in splits.items()}).save_to_disk(folder)
    return folder


def test_a_saved_dataset_is_read_by_its_address(saved):
    found = list(iter_documents([f"hf:{saved}", f"hf:{saved}@test", f"hf:{saved / 'test'}"], score_field="stars"))
    assert [document.text for document in found] == [f"{s} {n}" for s in ("train", "test", "test") for n in range(5)]
    assert [document.score for document in found[:5]] == [0, 1, 2, 3, 4]
    assert found[5].source == f"hf:{saved}@test" and found[6].position == 1
    with pytest.raises(DataError, match="no split 'dev'; its splits are train, test"):
        texts(f"hf:{saved}@dev")
    with pytest.raises(DataError, match="'body' is not there; the fields are text, stars"):
        texts(f"hf:{saved}", text_field="body")


def test_the_digest_of_a_dataset_knows_its_split_and_its_files(saved):
    first = digest_of(f"hf:{saved}")
    assert digest_of(f"hf:{saved}@test") != first
    with next((saved / "train").glob("*.arrow")).open("ab") as file:
        file.write(b"\0")
    assert digest_of(f"hf:{saved}") != first


def test_a_folder_of_files_is_streamed_through_the_datasets_library(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train.parquet", {"text": ["one", "two"]})
    assert texts(f"hf:{tmp_path / 'data'}") == ["one", "two"]


def test_a_dataset_that_cannot_be_reached_is_one_clear_line():
    pytest.importorskip("datasets")
    for attempt in (texts, digest_of):
        with pytest.raises(DataError, match=r"cannot be opened .*download it where") as refused:
            attempt("hf:no/such-dataset")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("module", "path"), [("pyarrow.parquet", "a.parquet"), ("datasets", "hf:org/name")])
def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, module, path):
    monkeypatch.chdir(tmp_path)
    write_parquet("a.parquet", {"text": ["one"]})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedError, match=r"not installed; pip install 'modernbert\[(parquet|datasets)\]'"):
        texts(path)


def test_a_hub_dataset_is_streamed_at_the_commit_that_the_digest_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*place, **options):
        asked.append((place, options))
        return datasets.Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset()

    monkeypatch.setattr("modernbert.text.datasets._commit", lambda name, revision: f"commit of {name} at {revision}")
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert texts("hf:org/name:en@test#v1") == ["one", "two"]
    commit = "commit of org/name at v1"
    assert asked == [(("org/name", "en"), {"split": "test", "revision": commit, "streaming": True})]
    assert len({digest_of(f"hf:org/name{rest}") for rest in ("", ":en", "@test", "#v1")}) == 4


def test_a_stream_that_breaks_off_says_how_far_it_came(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def rows():
        yield {"text": "one"}
        raise ConnectionError("the line went dead\nand more")

    monkeypatch.setattr("modernbert.text.datasets._commit", lambda name, revision: "commit")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
    with pytest.raises(DataError, match=r"hf:org/name broke off after \d rows \(the line went dead\); run the same"):
        texts("hf:org/name")
