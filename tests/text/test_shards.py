"""Building shards, reading them back, and every way in which a build can break."""

import gzip
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from modernbert.errors import ConfigError, DataError, UnsupportedError
from modernbert.text.bpe import train_tokenizer
from modernbert.text.build import build_shards
from modernbert.text.read import iter_documents
from modernbert.text.shards import Shards, length_histogram, read_manifest, summarize, token_dtype
from modernbert.text.tokenizer import load_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared"


class Interrupted(Exception):
    pass


@pytest.fixture
def source(tmp_path, corpus):
    path = tmp_path / "text" / "a.jsonl"
    path.parent.mkdir()
    texts = [*corpus, corpus[0], "", "Cat.", "the [MASK] [SEP] sat on a mat while dogs ran"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def build(tmp_path, source, tokenizer):
    def run(out="out", **options):
        settings = {"heldout": 0.1, "min_tokens": 8, "shard_tokens": 2000, "tokenizer": tokenizer}
        return build_shards(source, out=tmp_path / out, **(settings | options))

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_documents_come_back_in_order_in_their_split(tmp_path, build, tokenizer, corpus):
    manifest = build()
    train, heldout = (Shards.open(tmp_path / "out", split) for split in ("train", "heldout"))
    texts = [
        {tokenizer.decode(shards.tokens(index).tolist()) for index in range(len(shards))} for shards in (train, heldout)
    ]
    assert not texts[0] & texts[1]
    long = {" " + text for text in corpus if len(tokenizer.encode(text, add_special_tokens=False)) >= 8}
    assert texts[0] | texts[1] == long | {" the [MASK] [SEP] sat on a mat while dogs ran"}
    assert len(manifest["splits"]["train"]["shards"]) > 2
    assert 10 <= heldout.num_documents <= 60
    assert train.num_tokens == train.lengths.sum() == manifest["splits"]["train"]["tokens"]
    assert manifest["skipped"]["exact duplicate"]["count"] == 1
    assert manifest["skipped"]["empty"]["count"] == 1
    assert manifest["skipped"]["too short"]["count"] >= 1
    assert train.dtype == np.uint16 and train.vocab_size == 320
    assert load_tokenizer(train.tokenizer_path).get_vocab_size() == 320


def test_a_part_of_a_document_is_a_slice_of_it(tmp_path, build):
    build()
    shards = Shards.open(tmp_path / "out")
    for index in (0, len(shards) // 2, len(shards) - 1):
        whole = shards.tokens(index)
        assert len(whole) == shards.lengths[index]
        assert shards.tokens(index, 2, 5).tolist() == whole.tolist()[2:5]
        assert shards.tokens(index, 3).tolist() == whole.tolist()[3:]
    for outside in (-1, len(shards)):
        with pytest.raises(IndexError):
            shards.tokens(outside)


def test_shards_travel_to_workers_as_a_path(tmp_path, build):
    build()
    shards = Shards.open(tmp_path / "out")
    packed = pickle.dumps(shards)
    assert len(packed) < 1000
    assert pickle.loads(packed).tokens(3).tolist() == shards.tokens(3).tolist()


def test_special_tokens_spelled_out_in_a_text_stay_text(tmp_path, build, tokenizer):
    build()
    for split in ("train", "heldout"):
        shards = Shards.open(tmp_path / "out", split)
        assert max(shards.tokens(index).max() for index in range(len(shards))) < tokenizer.token_to_id("[UNK]")


def test_truncation_left_on_in_the_tokenizer_cuts_nothing(tmp_path, build, tokenizer):
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=100)
    assert build("cut", tokenizer=cutting)["splits"] == build("plain")["splits"]


def test_a_document_of_one_token_can_be_read(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("a\nthe cat\n")
    build_shards(
        tmp_path / "a.txt", tokenizer=tokenizer, out=tmp_path / "out", heldout=0, min_tokens=1, documents="line"
    )
    shards = Shards.open(tmp_path / "out")
    assert shards.lengths.min() == 1
    assert tokenizer.decode(shards.tokens(0).tolist()) == " a"


def test_the_split_of_a_document_does_not_depend_on_its_neighbours(tmp_path, build, source):
    build()
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(reversed(lines[100:])))
    build("other")
    shards = {name: Shards.open(tmp_path / name, "heldout") for name in ("out", "other")}
    found = {name: {bytes(one.tokens(i)) for i in range(len(one))} for name, one in shards.items()}
    assert found["other"] < found["out"]


@pytest.mark.parametrize("batch_chars", [1, 400, 10**6])
def test_an_interrupted_build_goes_on_to_the_same_bytes(tmp_path, build, monkeypatch, batch_chars):
    monkeypatch.setattr("modernbert.text.build._BATCH_CHARS", batch_chars)
    build("whole")
    for stop_after in (1, 2000, 4500, 10**9):

        def interrupt(_documents, tokens, limit=stop_after):
            if tokens > limit:
                raise Interrupted

        try:
            build("broken", progress=interrupt)
        except Interrupted:
            assert not list((tmp_path / "broken").glob("*.tmp"))
            with pytest.raises(DataError, match="did not finish; run the same command again"):
                Shards.open(tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_leftovers_of_a_killed_build_are_written_over(tmp_path, build):
    build("whole")
    (tmp_path / "killed").mkdir()
    for name in ("shard-00000.bin.tmp", "heldout-00000.idx.tmp", ".build.json.new", "shard-00001.bin"):
        (tmp_path / "killed" / name).write_bytes(b"half")
    build("killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_documents_in_finished_shards_are_not_tokenised_again(tmp_path, build, monkeypatch):
    monkeypatch.setattr("modernbert.text.build._BATCH_CHARS", 400)

    def interrupt(_documents, tokens):
        if tokens > 4500:
            raise Interrupted

    with pytest.raises(Interrupted):
        build(progress=interrupt)
    written = []
    build(progress=lambda _documents, tokens: written.append(tokens))
    assert written[0] > 4000


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_finished_shard_lost_before_resuming_is_written_again(tmp_path, build, monkeypatch, damage):
    monkeypatch.setattr("modernbert.text.build._BATCH_CHARS", 400)
    build("whole")

    def interrupt(_documents, tokens):
        if tokens > 4500:
            raise Interrupted

    with pytest.raises(Interrupted):
        build("broken", progress=interrupt)
    damage(tmp_path / "broken" / "shard-00000.bin")
    build("broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_finished_build_is_returned_without_work(build, caplog):
    first = build()
    with caplog.at_level("INFO"):
        assert build(progress=lambda *_: pytest.fail("tokenised again")) == first
    assert "nothing to do" in caplog.text


@pytest.mark.parametrize("finished", [True, False])
def test_another_build_in_the_same_folder_is_refused_by_what_differs(build, source, corpus, finished):
    def interrupt(*_):
        raise Interrupted

    if finished:
        build()
    else:
        with pytest.raises(Interrupted):
            build(progress=interrupt)
    with pytest.raises(ConfigError, match=r"min_tokens \(8 there, 9 here\)"):
        build(min_tokens=9)
    with pytest.raises(ConfigError, match="the tokenizer differ"):
        build(tokenizer=train_tokenizer(corpus, vocab_size=320, prefix_space=False))
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    with pytest.raises(ConfigError, match="the source files differ; choose another --out"):
        build()


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no documents in .* nothing was there"),
        (["", " "], {}, "2 empty"),
        (["cat", "dog"], {"min_tokens": 8}, r"2 too short$"),
        (["the cat sat on a mat while dogs ran"], {"heldout": 0.999999}, "held-out split"),
    ],
)
def test_an_empty_corpus_is_refused_and_leaves_nothing_behind(tmp_path, tokenizer, texts, options, message):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(DataError, match=message):
        build_shards(path, tokenizer=tokenizer, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_is_refused_and_the_repaired_one_builds_elsewhere(tmp_path, tokenizer, source):
    archive = tmp_path / "a.jsonl.gz"
    archive.write_bytes(gzip.compress(source.read_bytes())[:-20])
    with pytest.raises(DataError, match="cut short or damaged"):
        build_shards(archive, tokenizer=tokenizer, out=tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_full_disk_is_one_line_and_the_build_goes_on_when_there_is_room(tmp_path, build, source):
    # A limit on file size stands in for the disk: the same OSError, from the same calls.
    build("whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(DataError, match="make room or take another --out"):
            build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").glob("*.tmp"))
    build()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, build):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="out is a file, not a folder; take another --out"):
        build()
    with pytest.raises(DataError, match="cannot be written"):
        build("out/below")


def test_a_folder_that_another_build_fills_is_refused_and_none_is_harmed(tmp_path, build, monkeypatch):
    monkeypatch.setattr("modernbert.text.build._BATCH_CHARS", 400)
    build("whole")
    refused = []

    def build_too(_documents, _tokens):
        if not refused:
            with pytest.raises(DataError, match="out is being written by another process; wait for it") as caught:
                build()
            refused.append(caught)

    build(progress=build_too)
    assert refused and contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": {}, "shards": {"train": []}}'])
def test_a_damaged_note_of_what_is_done_is_one_line(tmp_path, build, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "build.json").write_text(content)
    with pytest.raises(DataError, match=r"build\.json is damaged .*; delete the folder"):
        build()


def test_whatever_refuses_the_sources_an_empty_folder_is_forgotten(tmp_path, build, monkeypatch):
    def refuse(*_, **__):
        raise UnsupportedError("no such library")
        yield

    monkeypatch.setattr("modernbert.text.build.iter_documents", refuse)
    with pytest.raises(UnsupportedError):
        build()
    assert not (tmp_path / "out").exists()


def test_a_refused_build_does_not_stand_in_the_way_of_other_settings(tmp_path, build, source):
    good = source.read_text()
    source.write_text("{broken\n" + good)
    with pytest.raises(DataError, match="not valid JSON"):
        build()
    source.write_text(good)
    assert build(min_tokens=9)["settings"]["min_tokens"] == 9


def test_records_without_text_are_counted_and_do_not_end_a_build(tmp_path, build, source):
    with source.open("a") as file:
        file.write('{"text": null}\n{broken\n')
    skipped = build()["skipped"]
    assert skipped["no text"]["count"] == 1 and skipped["not valid JSON"]["examples"][0].startswith(str(source))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heldout": 1.0}, "heldout=1.0"),
        ({"min_tokens": 0}, "min_tokens=0"),
        ({"shard_tokens": 0}, "shard_tokens=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_a_shard_cut_short_or_missing_is_refused_with_both_sizes(tmp_path, build):
    build()
    path = tmp_path / "out" / "shard-00001.bin"
    size = path.stat().st_size
    os.truncate(path, size - 2)
    with pytest.raises(DataError, match=rf"shard-00001.bin has {size - 2:,} bytes, .* {size:,} bytes"):
        Shards.open(tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00001.bin is missing"):
        Shards.open(tmp_path / "out")


@pytest.mark.parametrize(("name", "value", "dtype"), [("shard-00000.bin", 5000, "<u2"), ("shard-00000.idx", 7, "<u8")])
def test_contents_that_do_not_fit_the_manifest_are_refused(tmp_path, build, name, value, dtype):
    build()
    path = tmp_path / "out" / name
    array = np.fromfile(path, dtype)
    array[0] = value
    array.tofile(path)
    with pytest.raises(DataError, match="do not fit the manifest"):
        Shards.open(tmp_path / "out")


def test_an_index_that_falls_is_found_when_lengths_are_read(tmp_path, build):
    build()
    path = tmp_path / "out" / "shard-00000.idx"
    array = np.fromfile(path, "<u8")
    array[1:3] = array[1:3][::-1].copy()
    array.tofile(path)
    with pytest.raises(DataError, match="index is damaged"):
        _ = Shards.open(tmp_path / "out").lengths


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "manifest.json").unlink(), "did not finish"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"version": 99}'), "of version 99"),
    ],
)
def test_a_spoiled_manifest_is_refused(tmp_path, build, spoil, message):
    build()
    spoil(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path / "out")


def test_an_empty_or_unknown_split_is_refused(tmp_path, build):
    build(heldout=0)
    with pytest.raises(DataError, match="no documents in its heldout split"):
        Shards.open(tmp_path / "out", "heldout")
    with pytest.raises(DataError, match="it has train, heldout"):
        Shards.open(tmp_path / "out", "test")


def test_ids_take_two_bytes_up_to_65536_entries_and_four_beyond():
    assert [token_dtype(size).itemsize for size in (2**16, 2**16 + 1)] == [2, 4]


def test_lengths_are_counted_in_powers_of_two():
    rows = length_histogram(np.array([1, 2, 3, 4, 1000]))
    assert [(row["from"], row["to"], row["documents"], row["tokens"]) for row in rows] == [
        (1, 1, 1, 1),
        (2, 3, 2, 5),
        (4, 7, 1, 4),
        (512, 1023, 1, 1000),
    ]


def test_the_summary_names_splits_and_what_was_left_out(build):
    text = summarize(build())
    assert "| train |" in text and "| heldout |" in text
    assert "1 exact duplicate" in text


@pytest.mark.slow
def test_a_tokenizer_of_chinese_beats_the_english_one_on_chinese(tmp_path):
    data = SHARED / "data" / "pretrain_wiki_zh"
    genuine = SHARED / "modernbert-tokenizer"
    if not data.is_dir() or not genuine.is_dir():
        pytest.skip("shared data is not here")
    train = data / "train.jsonl.zst"
    own = train_tokenizer((doc.text for doc in iter_documents(train)), vocab_size=8192, sample_bytes=4_000_000)
    texts = [doc.text for doc in iter_documents(data / "validation.jsonl.zst")][:40]
    density = [
        sum(map(len, texts)) / sum(len(one.encode(text, add_special_tokens=False)) for text in texts)
        for one in (own, load_tokenizer(genuine))
    ]
    assert density[0] > 1.5 * density[1], density
    build_shards(data / "validation.jsonl.zst", tokenizer=own, out=tmp_path / "out")
    assert Shards.open(tmp_path / "out").num_documents > 60
