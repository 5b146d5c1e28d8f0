"""Files -> documents, and every way in which a file can be bad."""

import gzip
import json
import pickle

import pytest
import zstandard

from modernbert.errors import ConfigError, DataError
from modernbert.text.clean import document_hash, drop_duplicates_and_short, is_held_out
from modernbert.text.read import Skips, iter_documents


def texts(paths, **options):
    return [document.text for document in iter_documents(paths, **options)]


def jsonl(*records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("name", "raw", "cut", "expected"),
    [
        ("a.txt", "één\n\ntwee\n".encode(), "file", ["één\n\ntwee\n"]),
        ("a.md", b"one\n\n  \ntwo\nlines", "line", ["one", "two", "lines"]),
        ("a.rst", b"\n\none\nmore\n \n\ntwo\n", "paragraph", ["one\nmore", "two"]),
        ("a.py", b"def f():\r\n    pass\r\n", "file", ["def f():\n    pass\n"]),
        ("a.txt", b"\xef\xbb\xbfmarked\r\nlines\r\n", "line", ["marked", "lines"]),
        ("a.jsonl", jsonl({"text": "one"}, {"text": "two\r\n"}) + b"\n\n", "file", ["one", "two\n"]),
        ("a.ndjson", b"\xef\xbb\xbf" + jsonl({"text": "one\n\ntwo"}), "paragraph", ["one\n\ntwo"]),
        ("a.strange", b"read as text", "file", ["read as text"]),
    ],
)
def test_each_kind_of_file_gives_its_documents(tmp_path, ending, name, raw, cut, expected):
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESS[ending](raw))
    assert texts(path, documents=cut) == expected


def test_a_folder_is_read_in_sorted_order_without_hidden_or_unknown_files(tmp_path):
    for name in ("b.txt", "a/z.md", "a/c.py", ".hidden.txt", ".git/x.txt", "__pycache__/x.py", "d.png", "skip.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    skips = Skips()
    found = list(iter_documents([tmp_path], on_skip=skips.add, exclude=["skip*"]))
    assert [document.text for document in found] == ["b.txt", "a/c.py", "a/z.md"]
    assert found[0].source == str(tmp_path / "b.txt")
    assert skips.counts == {"unknown kind of file": 1, "excluded": 1, "hidden": 1}


def test_position_counts_the_lines_of_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("zero\n\ntwo\n")
    assert [document.position for document in iter_documents(path, documents="line")] == [0, 2]


def test_a_line_longer_than_a_block_comes_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("modernbert.text.blocks._BLOCK_BYTES", 7)
    path = tmp_path / "a.txt"
    path.write_text("a line of many blocks\nshort\nanother long line")
    assert texts(path, documents="line") == ["a line of many blocks", "short", "another long line"]


@pytest.mark.parametrize("frames", [2, 3])
def test_a_zst_file_of_several_frames_is_read_to_the_end(tmp_path, frames):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"".join(zstandard.compress(b"frame\n") for _ in range(frames)))
    assert texts(path, documents="line") == ["frame"] * frames


def test_broken_utf8_drops_the_line_and_is_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\xfe\ngood too\n")
    (tmp_path / "b.jsonl").write_bytes(
        b'{"text": "fine"}\n{"text": "\xff"}\n' + rb'{"text": "half \ud83d"}' + b"\n" + rb'{"text": "\ud83d\ude00"}'
    )
    skips = Skips()
    assert texts(tmp_path, documents="line", on_skip=skips.add) == ["good", "good too", "fine", "😀"]
    assert skips.counts == {"broken UTF-8": 3}
    assert "a.txt#1" in skips.examples["broken UTF-8"][0]
    assert "3 broken UTF-8 (" in str(skips)


def test_broken_utf8_drops_the_whole_file_where_a_file_is_a_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\n")
    skips = Skips()
    assert texts(tmp_path, on_skip=skips.add) == []
    assert skips.counts == {"broken UTF-8": 1}


@pytest.mark.parametrize("cut", ["file", "line"])
def test_a_binary_file_is_dropped_in_a_folder_and_refused_when_named(tmp_path, cut):
    path = tmp_path / "a.txt"
    path.write_bytes(b"text\n\0\1\2\nmore")
    skips = Skips()
    assert texts(tmp_path, documents=cut, on_skip=skips.add) == []
    assert skips.counts == {"binary": 1}
    with pytest.raises(DataError, match="NUL"):
        texts(path, documents=cut)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'\n{broken\n{"text": "fine"}\n', "line 2: not valid JSON"),
        (b"[1]\n", "a JSON list, not an object"),
        (b'{"body": "x", "title": "y"}\n', "'text' is not there; the fields are body, title: say --text-field body"),
        (b'{"text": 3}\n', "holds a int, not text"),
        (b"[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number_and_a_remedy(tmp_path, raw, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        texts(path)


def test_a_bad_line_among_good_ones_is_left_out_and_counted(tmp_path):
    lines = (
        b'{"text": null}',
        b'{"text": "one"}',
        b"{broken",
        b"[1]",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": "two"}',
    )
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    skips = Skips()
    found = list(iter_documents(tmp_path, on_skip=skips.add))
    assert [(document.text, document.position) for document in found] == [("one", 1), ("two", 6)]
    assert skips.counts == {"no text": 3, "not valid JSON": 2}
    assert skips.examples["not valid JSON"][0] == f"{tmp_path / 'a.jsonl'}, line 3"


def test_a_field_that_comes_late_is_found_and_one_that_never_comes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"body": "x"}, {"body": "y"}, {"text": "one"}))
    assert texts(path) == ["one"]
    with pytest.raises(DataError, match=r"line 1: the field 'title' is not there; .*: say --text-field body"):
        texts(path, text_field="title")
    monkeypatch.setattr("modernbert.text.records._PATIENCE", 2)
    with pytest.raises(DataError, match="line 1: the field 'text' is not there"):
        texts(path)


def test_of_several_fields_each_that_a_record_has_is_a_document(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"q": "one", "a": "two"}, {"a": None}, {"a": "three", "q": None}, {}))
    (tmp_path / "b.csv").write_text("a\nfour\n")
    assert texts(tmp_path, text_field=("q", "a")) == ["one", "two", "three", "four"]
    (tmp_path / "c.jsonl").write_bytes(jsonl({"x": "one"}))
    with pytest.raises(DataError, match=r"c\.jsonl, line 1: the fields 'q' and 'a' are not there; the fields are x"):
        texts(tmp_path, text_field=("q", "a"))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: b"no archive at all"])
def test_a_damaged_archive_is_refused_and_never_taken_for_a_short_one(tmp_path, ending, damage):
    path = tmp_path / ("a.jsonl" + ending)
    path.write_bytes(damage(COMPRESS[ending](jsonl(*({"text": f"{n:x}" * 9} for n in range(2000))))))
    with pytest.raises(DataError, match=r"a\.jsonl.* is cut short or damaged after [\d,]+ documents"):
        texts(path)


def test_a_missing_path_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        iter_documents([tmp_path / "missing"])


def test_links_that_lead_nowhere_or_to_a_folder_are_left_out_and_counted(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("kept")
    (tmp_path / "corpus" / "b.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "corpus" / "round").symlink_to(tmp_path)
    skips = Skips()
    assert [document.text for document in iter_documents([tmp_path / "corpus"], on_skip=skips.add)] == ["kept"]
    assert skips.counts == {"broken link": 1, "linked folder": 1}


def test_an_unknown_way_to_cut_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="choose file, line or paragraph"):
        iter_documents(tmp_path, documents="sentence")


def test_duplicates_and_empty_documents_are_dropped_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": text} for text in ("one", " ", " one\n", "x", "two", "one"))))
    skips = Skips()
    kept = drop_duplicates_and_short(iter_documents(tmp_path), min_chars=2, skips=skips)
    assert [document.text for document in kept] == ["one", "two"]
    assert skips.counts == {"empty": 1, "exact duplicate": 2, "too short": 1}
    assert pickle.loads(pickle.dumps(skips.as_dict()))["empty"]["count"] == 1


def test_the_held_out_share_is_near_the_fraction_and_changes_with_the_seed():
    digests = [document_hash(str(number)) for number in range(4000)]
    drawn = [{d for d in digests if is_held_out(d, fraction=0.1, seed=seed)} for seed in (0, 1)]
    assert all(320 < len(held_out) < 480 for held_out in drawn)
    assert drawn[0] != drawn[1]
