"""MDS shards -> documents, and shards of ids -> our shards; the shards come from a plain writer of the tests' own."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.mds_writer import CODES, write_mds

from modernbert.errors import ConfigError, DataError, UnsupportedError
from modernbert.text import Shards, Skips, build_shards, iter_documents, special_ids
from modernbert.text.mds import import_mds
from modernbert.text.mds_format import iter_samples, shards_in
from modernbert.text.read import digest_of

SCALARS = [name for name in CODES if name != "float16"]
COLUMNS = {
    "text": "str", "n": "int", "q": "float32", "h": "float16", "raw": "bytes", "j": "json", "si": "str_int",
    "sf": "str_float", "any": "ndarray", "ids": "ndarray:uint16", "fixed": "ndarray:int32:2,3",
} | {name: name for name in SCALARS}  # fmt: skip


def texts(paths, **options):
    return [document.text for document in iter_documents(paths, **options)]


def sample(number):
    shape = [(3,), (2, 300), (70_000,), (1, 1, 2)][number % 4]
    kind = list(CODES)[number % len(CODES)]
    return {
        "text": f"één {number}" * (number % 3), "n": -number * 10**12, "q": number / 4, "raw": b"\0\1" * number,
        "any": np.arange(np.prod(shape)).reshape(shape).astype(kind), "ids": np.arange(number + 1, dtype=np.uint16),
        "fixed": np.full((2, 3), -number, np.int32), "j": {"a": [number, "é"]}, "si": 10**30, "sf": 0.5, "h": 1.5,
    } | {name: number for name in SCALARS}  # fmt: skip


def same(found, expected):
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and found.shape == expected.shape and (found == expected).all()
    return found == (expected.encode() if isinstance(expected, str) else expected)


@pytest.mark.parametrize("compression", [None, "zstd:7", "gz"])
def test_every_encoding_comes_back(tmp_path, compression, monkeypatch):
    monkeypatch.setattr("modernbert.text.blocks._BLOCK_BYTES", 1000)
    samples = [sample(number) for number in range(13)]
    write_mds(tmp_path, COLUMNS, samples, per_shard=5, compression=compression)
    shards = shards_in(tmp_path)
    found = [found for shard in shards for found in iter_samples(shard, list(COLUMNS))]
    assert [shard.num_samples for shard in shards] == [5, 5, 3]
    for found_sample, expected in zip(found, samples, strict=True):
        assert all(same(found_sample[name], expected[name]) for name in COLUMNS)


def test_a_folder_with_an_index_is_read_in_its_order_and_nothing_in_it_twice(tmp_path):
    for folder in ("b", "a"):
        rows = [{"text": f"{folder}{number}", "q": number} for number in range(3)]
        write_mds(
            tmp_path / folder, {"text": "str", "q": "float32"}, rows, per_shard=2, compression="zstd", keep_raw=True
        )
    (tmp_path / "c.txt").write_text("plain")
    skips = Skips()
    assert texts(tmp_path, on_skip=skips.add) == ["plain", "a0", "a1", "a2", "b0", "b1", "b2"]
    found = list(iter_documents(tmp_path / "b", score_field="q", on_skip=skips.add))
    assert [document.score for document in found] == [0, 1, 2]
    assert found[2].source == str(tmp_path / "b" / "shard.00001.mds") and found[2].position == 0
    assert not skips.counts
    assert texts(tmp_path / "b", exclude=["*.00000.*"]) == ["b2"]


def test_a_merged_index_takes_the_place_of_those_below_it(tmp_path):
    shards = []
    for folder in ("a", "b"):
        index = write_mds(tmp_path / folder, {"text": "str"}, [{"text": folder}])
        for shard in index["shards"]:
            shard["raw_data"]["basename"] = f"{folder}/{shard['raw_data']['basename']}"
            shards.append(shard)
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    assert texts(tmp_path) == ["a", "b"]
    assert len(shards_in(tmp_path)) == 2


def test_an_index_of_something_else_is_passed_over(tmp_path):
    (tmp_path / "index.json").write_text('["no shards"]')
    (tmp_path / "a.txt").write_text("text")
    skips = Skips()
    assert texts(tmp_path, on_skip=skips.add) == ["text"]
    assert skips.counts == {"unknown kind of file": 1}
    (tmp_path / "index.json").rename(tmp_path / "shard.00000.mds")
    assert texts(tmp_path, on_skip=skips.add) == ["text"]
    assert skips.counts["MDS shard without its index.json"] == 1


def test_the_digest_knows_shards(tmp_path):
    write_mds(tmp_path, {"text": "str"}, [{"text": "a"}])
    first = digest_of(tmp_path)
    write_mds(tmp_path, {"text": "str"}, [{"text": "a"}, {"text": "b"}])
    assert digest_of(tmp_path) != first


def test_broken_utf8_drops_the_sample_and_is_counted(tmp_path):
    write_mds(tmp_path, {"text": "str"}, [{"text": "a"}, {"text": b"\xff"}, {"text": "b"}])
    skips = Skips()
    assert texts(tmp_path, on_skip=skips.add) == ["a", "b"]
    assert skips.counts == {"broken UTF-8": 1}


@pytest.mark.parametrize("encoding", ["jpeg", "pkl", "ndarray:complex64"])
def test_an_encoding_that_cannot_be_read_matters_only_where_it_is_wanted(tmp_path, encoding):
    write_mds(tmp_path, {"text": "str", "raw": "bytes"}, [{"text": "a", "raw": b"x"}])
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"bytes"', f'"{encoding}"', 1))
    assert texts(tmp_path) == ["a"]
    with pytest.raises(UnsupportedError, match=f"column 'raw' is encoded as {encoding}"):
        texts(tmp_path, text_field="raw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(version=3), "MDS version 3, and this package reads 2"),
        (lambda index: index["shards"][0].pop("samples"), "index.json is damaged"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="../a"), "lies outside the folder"),
        (
            lambda index: index["shards"][0]["raw_data"].update(basename="b.mds"),
            "b.mds is missing, and index.json says",
        ),
        (lambda index: index["shards"][0]["raw_data"].update(bytes=7), "bytes, and index.json says 7 bytes"),
        (lambda index: index["shards"][0]["raw_data"].update(hashes={"sha1": "0"}), "damaged after 2 documents"),
        (lambda index: index["shards"][0].update(samples=3), "damaged after 0 documents"),
        (lambda index: index["shards"][0].update(column_sizes=[3]), "damaged after 0 documents"),
        (lambda index: index["shards"][0].update(column_names=["body"]), "fields are body: say --text-field body"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, change, message):
    index = write_mds(tmp_path, {"text": "str"}, [{"text": "a"}, {"text": "b"}])
    change(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        texts(tmp_path)


def test_a_broken_index_beside_shards_is_refused(tmp_path):
    write_mds(tmp_path, {"text": "str"}, [{"text": "a"}])
    (tmp_path / "index.json").write_text('{"shards": [')
    with pytest.raises(DataError, match="cannot be read"):
        texts(tmp_path)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), hashes=st.sampled_from([(), ("sha1",)]))
def test_a_shard_with_a_flipped_byte_is_refused_or_unharmed_in_shape(tmp_path_factory, data, hashes):
    folder = tmp_path_factory.mktemp("mds")
    write_mds(folder, {"text": "str", "a": "ndarray"}, [{"text": "abc" * n, "a": np.arange(n + 1)} for n in range(4)],
              hashes=hashes)  # fmt: skip
    path = folder / "shard.00000.mds"
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    (shard,) = shards_in(folder)
    try:
        found = list(iter_samples(shard, ["text", "a"]))
    except EOFError:
        return
    assert len(found) == 4 and not hashes


@pytest.mark.parametrize("compression", ["zstd", "gz"])
def test_a_compressed_shard_cut_short_behind_the_indexs_back_is_refused(tmp_path, compression):
    index = write_mds(tmp_path, {"text": "str"}, [{"text": f"{n:x}" * 9} for n in range(2000)],
                      compression=compression, per_shard=2000)  # fmt: skip
    zipped = index["shards"][0]["zip_data"]
    path = tmp_path / zipped["basename"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"bytes, and index.json says [\d,]+ bytes; copy it again"):
        texts(tmp_path)
    zipped["bytes"] -= 9
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"is cut short or damaged after [\d,]+ documents"):
        texts(tmp_path)


def test_a_compression_that_cannot_be_undone_is_named(tmp_path):
    index = write_mds(tmp_path, {"text": "str"}, [{"text": "a"}], compression="zstd")
    index["shards"][0]["compression"] = "br:11"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedError, match="compressed with br, and this package undoes zstd, gz, bz2"):
        texts(tmp_path)


# Shards of ids.


@pytest.fixture
def ids(tokenizer, corpus):
    return [encoding.ids for encoding in tokenizer.encode_batch(corpus, add_special_tokens=False)]


@pytest.fixture
def special(tokenizer):
    return special_ids(tokenizer)


def documents_of(folder):
    splits = [Shards.open(folder, split) for split in ("train", "heldout")]
    return [[shards.tokens(index).tolist() for index in range(len(shards))] for shards in splits]


@pytest.mark.parametrize(
    ("encoding", "kind"),
    [("ndarray:uint16", "u2"), ("ndarray", "i4"), ("bytes", "i8"), ("bytes", "i4"), ("bytes", "u2"), ("json", "u1")],
)
def test_ids_come_back_without_what_stood_around_them(tmp_path, tokenizer, special, ids, encoding, kind):
    rows = [np.array([special.cls, *row, special.sep, *[special.pad] * (number % 3)]) for number, row in enumerate(ids)]
    values = {"bytes": lambda row: row.astype(kind).tobytes(), "json": np.ndarray.tolist}
    encoded = [values.get(encoding, lambda row: row.astype(kind))(row) for row in rows]
    write_mds(tmp_path / "mds", {"input_ids": encoding, "id": "int"}, [{"input_ids": v, "id": 1} for v in encoded])
    calls = []
    manifest = import_mds(
        tmp_path / "mds", tokenizer, tmp_path / "out", heldout=0.1, progress=lambda *counts: calls.append(counts)
    )
    train, heldout = documents_of(tmp_path / "out")
    assert sorted(train + heldout) == sorted(ids)
    assert train == [row for row in ids if row in train] and 10 <= len(heldout) <= 60
    assert manifest["splits"]["train"]["tokens"] == sum(map(len, train))
    assert manifest["splits"]["train"]["text_bytes"] == sum(len(tokenizer.decode(row).encode()) for row in train)
    assert tokenizer.decode(ids[0][:40]) in manifest["remarks"][0]


def test_packed_samples_are_cut_into_their_documents(tmp_path, tokenizer, special, ids):
    packed = [
        [special.cls, *ids[0], special.sep, special.cls, *ids[1], special.sep],
        [*ids[2], special.sep, *ids[3], special.sep, *ids[4]],
        [special.pad, special.pad],
        ids[5],
    ]
    rows = [{"tokens": np.array(row, np.int64)} for row in packed]
    write_mds(tmp_path / "mds", {"tokens": "ndarray"}, rows)
    manifest = import_mds(tmp_path / "mds", tokenizer, tmp_path / "out", heldout=0)
    assert documents_of_train(tmp_path / "out") == ids[:6]
    assert "2 of 4 samples held more than one document" in manifest["remarks"][1]


def documents_of_train(folder):
    shards = Shards.open(folder)
    return [shards.tokens(index).tolist() for index in range(len(shards))]


def test_an_import_that_was_cut_off_goes_on_to_the_same_bytes(tmp_path, tokenizer, ids, monkeypatch):
    class Interrupted(Exception):
        pass

    def stop(_samples, _tokens):
        raise Interrupted

    rows = [{"input_ids": np.array(row, np.uint16)} for row in ids]
    write_mds(tmp_path / "mds", {"input_ids": "ndarray:uint16"}, rows)
    settings = {"heldout": 0.1, "shard_tokens": 500}
    import_mds(tmp_path / "mds", tokenizer, tmp_path / "whole", **settings)
    monkeypatch.setattr("modernbert.text.mds._SAMPLES_A_CALL", 150)
    with pytest.raises(Interrupted):
        import_mds(tmp_path / "mds", tokenizer, tmp_path / "out", progress=stop, **settings)
    done = contents(tmp_path / "out")
    assert "build.json" in done and len(done) > 3
    import_mds(tmp_path / "mds", tokenizer, tmp_path / "out", **settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert done.items() - contents(tmp_path / "out").items() == {("build.json", done["build.json"])}
    with pytest.raises(ConfigError, match="seed"):
        import_mds(tmp_path / "mds", tokenizer, tmp_path / "out", seed=1, **settings)


def test_training_data_from_ids_is_what_a_build_from_text_gives(tmp_path, tokenizer, corpus, ids):
    (tmp_path / "a.txt").write_text("\n".join(corpus))
    built = build_shards(tmp_path / "a.txt", tokenizer=tokenizer, out=tmp_path / "built", heldout=0, min_tokens=1,
                         documents="line")  # fmt: skip
    distinct = list(dict.fromkeys(map(tuple, ids)))
    write_mds(tmp_path / "mds", {"input_ids": "ndarray"}, [{"input_ids": np.array(row)} for row in distinct])
    imported = import_mds(tmp_path / "mds", tokenizer, tmp_path / "imported", heldout=0)
    for name in ("format", "version", "dtype", "vocab_size", "tokenizer"):
        assert imported[name] == built[name]
    assert set(built) <= set(imported) | {"remarks"}
    for name in ("documents", "tokens", "lengths"):
        assert imported["splits"]["train"][name] == built["splits"]["train"][name]
    for name in ("shard-00000.bin", "shard-00000.idx", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "imported" / name).read_bytes() == (tmp_path / "built" / name).read_bytes()


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("columns", "row", "options", "message"),
    [
        (
            {"input_ids": "ndarray"},
            {"input_ids": np.array([5, 320])},
            {},
            "the id 320 is outside the tokenizer's 0 to 319",
        ),
        ({"input_ids": "ndarray"}, {"input_ids": np.array([-1, 5])}, {}, "the id -1 is outside"),
        (
            {"input_ids": "ndarray"},
            {"input_ids": np.ones((2, 3), int)},
            {},
            r"int64 of shape \[2, 3\] is no row of ids",
        ),
        ({"input_ids": "ndarray"}, {"input_ids": np.ones(3)}, {}, "float64 of shape"),
        ({"input_ids": "bytes"}, {"input_ids": b"\xff" * 8}, {}, "no 64-, 32- or 16-bit ids of this tokenizer"),
        (
            {"text": "str"},
            {"text": "a"},
            {},
            "named input_ids or tokens; .* `modernbert data build .* --text-field text`",
        ),
        ({"x": "ndarray"}, {"x": np.ones(3, int)}, {"column": "y"}, "no column 'y'; its columns are x: say which"),
        ({"x": "ndarray"}, {"x": np.ones(3, int)}, {"column": "x", "min_tokens": 4}, "no document to train on"),
    ],
)
def test_what_is_no_row_of_this_tokenizers_ids_is_refused(tmp_path, tokenizer, columns, row, options, message):
    write_mds(tmp_path / "mds", columns, [row])
    with pytest.raises(DataError, match=message):
        import_mds(tmp_path / "mds", tokenizer, tmp_path / "out", heldout=0, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_shards_is_refused(tmp_path, tokenizer):
    with pytest.raises(DataError, match="holds no MDS shards"):
        import_mds(tmp_path, tokenizer, tmp_path / "out")
