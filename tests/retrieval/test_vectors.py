"""Files of vectors: whole or not there, the same bytes however often the writing was cut off, never of two minds."""

import contextlib
import copy
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert import load
from modernbert.errors import ConfigError, DataError
from modernbert.retrieval import encode, vectors
from modernbert.retrieval.rows import NpyRows
from modernbert.retrieval.vectors import Counts, VectorFile, check_out

pq = pytest.importorskip("pyarrow.parquet")
KINDS = ["npy", "parquet"]
WINDOW = 10


class Stop(BaseException):
    """As a kill stops a process: nothing handles it."""


def stop(*_):
    raise Stop


def contents(path):
    """Vectors of a file; of a parquet file its texts and index too."""
    if path.suffix == ".npy":
        return np.load(path), None, None
    table = pq.read_table(path)
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    return flat.reshape(table.num_rows, -1), table["text"].to_pylist(), table["index"].to_pylist()


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def out(tmp_path):
    return lambda kind="npy": tmp_path / f"vectors.{kind}"


@pytest.fixture
def cut_off(tiny_model, texts):
    """Begin a file and stop behind so many texts."""

    def begin(path, behind=37, **settings):
        def broken():
            yield from texts[:behind]
            raise Stop

        with pytest.raises(Stop):
            encode(tiny_model, broken(), out=path, texts_per_window=WINDOW, **settings)
        assert not path.exists()
        return path.with_name(f"{path.name}.unfinished")

    return begin


def num_done(path):
    progress = path.with_name(f"{path.name}.unfinished") / "progress.json"
    return json.loads(progress.read_text())["counts"]["texts"] if progress.exists() else 0


# What a finished file is.


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_what_an_array_would(tiny_model, texts, out, kind):
    path = encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW, truncate_dim=9)
    assert path == out(kind) and everything_in(path.parent) == [path.name]
    found, its_texts, index = contents(path)
    assert found.dtype == np.float32 and found.shape == (len(texts), 9)
    assert np.array_equal(found, encode(tiny_model, texts, texts_per_window=WINDOW, truncate_dim=9))
    if kind == "parquet":
        assert its_texts == texts and index == list(range(len(texts)))
        assert str(pq.read_schema(path).field("vector").type) == "fixed_size_list<element: float>[9]"
        assert pq.ParquetFile(path).num_row_groups == len(texts) / WINDOW


def test_an_npy_file_can_be_mapped_into_memory(tiny_model, texts, out):
    path = encode(tiny_model, texts, out=out())
    mapped = np.load(path, mmap_mode="r")
    assert isinstance(mapped, np.memmap) and mapped.offset % 64 == 0
    assert np.array_equal(mapped, encode(tiny_model, texts))


@pytest.mark.parametrize("kind", KINDS)
def test_no_texts_are_a_file_without_rows(tiny_model, out, kind):
    path = encode(tiny_model, iter([]), out=out(kind))
    assert (np.load(path).shape if kind == "npy" else pq.read_table(path).shape) == (
        (0, 32) if kind == "npy" else (0, 3)
    )


@given(rows=st.integers(0, 10**12), dimensions=st.integers(1, 10**5))
@settings(max_examples=20, deadline=None)
def test_the_header_fits_any_shape(tmp_path_factory, rows, dimensions):
    folder = tmp_path_factory.mktemp("header")
    (folder / "rows.npy").write_bytes(bytes(128))
    with NpyRows(folder, dimensions).finish(rows).open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((rows, dimensions), False, np.dtype("<f4"))
        assert file.tell() == 128


# Going on.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [[0], [9], [10], [25], [90], [15, 40, 41, 89]])
def test_a_file_that_was_cut_off_ends_as_if_it_had_not_been(tiny_model, texts, out, cut_off, kind, stops, tmp_path):
    for behind in stops:
        cut_off(out(kind), behind)
        assert num_done(out(kind)) >= behind - 2 * WINDOW and num_done(out(kind)) % WINDOW == 0
    done = num_done(out(kind))
    seen = []
    path = encode(tiny_model, iter(texts), out=out(kind), texts_per_window=WINDOW,
                  progress=lambda counts: seen.append(counts.texts))  # fmt: skip
    whole = encode(tiny_model, texts, out=tmp_path / f"whole.{kind}", texts_per_window=WINDOW)
    assert path.read_bytes() == whole.read_bytes()
    assert seen[0] == done and seen[-1] == len(texts) and everything_in(tmp_path) == [path.name, whole.name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_rows_that_were_written_and_not_counted_are_cut_away(tiny_model, texts, out, kind, nth, monkeypatch, tmp_path):
    calls = iter(range(1, 100))
    with monkeypatch.context() as patched, pytest.raises(Stop):
        write = vectors.write_whole
        patched.setattr(vectors, "write_whole", lambda *args: stop() if next(calls) == nth else write(*args))
        encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW)
    assert num_done(out(kind)) == (nth - 1) * WINDOW
    if kind == "npy" and nth > 1:
        rows = out(kind).with_name("vectors.npy.unfinished") / "rows.npy"
        assert rows.stat().st_size == 128 + nth * WINDOW * 32 * 4
        with rows.open("ab") as file:
            file.write(b"torn")
    path = encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW)
    whole = encode(tiny_model, texts, out=tmp_path / f"whole.{kind}", texts_per_window=WINDOW)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_were_not_counted_are_cut_away_also_where_no_text_follows(tiny_model, texts, out, kind, monkeypatch):
    calls = iter(range(1, 100))
    with monkeypatch.context() as patched, pytest.raises(Stop):
        write = vectors.write_whole
        patched.setattr(vectors, "write_whole", lambda *args: stop() if next(calls) == 3 else write(*args))
        encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW)
    found, *_ = contents(encode(tiny_model, texts[:20], out=out(kind), texts_per_window=WINDOW))
    assert np.array_equal(found, encode(tiny_model, texts[:20], texts_per_window=WINDOW))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_while_the_rows_become_one_file_costs_nothing(tiny_model, texts, out, kind, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(vectors, "sync", stop)
        encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW)
    assert not out(kind).exists() and num_done(out(kind)) == len(texts)
    seen = []
    path = encode(tiny_model, texts, out=out(kind), progress=lambda counts: seen.append(counts.texts))
    assert seen == [len(texts)]
    assert np.array_equal(contents(path)[0], encode(tiny_model, texts, texts_per_window=WINDOW))


def test_counts_go_on_too(tiny_model, out, cut_off, texts, caplog):
    cut_off(out(), max_length=30)
    encode(tiny_model, texts, out=out(), max_length=30, texts_per_window=WINDOW)
    encode(tiny_model, texts, max_length=30)
    unbroken = caplog.records[-1].getMessage()
    assert "of 90 texts were longer than 30" in unbroken and caplog.records[-2].getMessage() == unbroken


def test_batches_and_windows_may_change_in_between(tiny_model, texts, out, cut_off):
    cut_off(out())
    path = encode(tiny_model, texts, out=out(), tokens_per_batch=100, texts_per_window=7)
    assert np.allclose(np.load(path), encode(tiny_model, texts), atol=1e-6)


# Refusals.


def changed(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder.layers[1].mlp.Wo.weight[3, 4] += 1e-6
    return other


def with_another_tokenizer(model):
    other = copy.copy(model)
    other.tokenizer = type(model.tokenizer).from_str(model.tokenizer.to_str())
    other.tokenizer.add_special_tokens(["[NEW]"])
    return other


@pytest.mark.parametrize(
    "name,settings",
    [
        ("pooling", {"pooling": "cls"}),
        ("normalize", {"normalize": False}),
        ("dimensions", {"truncate_dim": 31}),
        ("max_length", {"max_length": 64}),
        ("model", {"model": changed}),
        ("tokenizer", {"model": with_another_tokenizer}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_begun_with_others_is_refused_and_kept(tiny_model, texts, out, cut_off, name, settings, kind):
    folder = cut_off(out(kind))
    before = everything_in(folder)
    model = settings.get("model", lambda model: model)(tiny_model)
    settings = {key: value for key, value in settings.items() if key != "model"}
    with pytest.raises(
        ConfigError, match=rf"vectors.{kind}.unfinished was begun with {name}=.*, this is {name}=.*remove"
    ):
        encode(model, texts, out=out(kind), texts_per_window=WINDOW, **settings)
    assert everything_in(folder) == before
    assert encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW).exists()


def test_another_precision_is_refused(tiny_model, texts, out, cut_off):
    cut_off(out())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="precision='float32', this is"):
        encode(tiny_model, texts, out=out())


@pytest.mark.parametrize(
    "edit",
    [
        lambda texts: texts[1:],
        lambda texts: [*texts[:5], texts[5] + " ", *texts[6:]],
        lambda texts: [texts[0][:9], texts[0][9:], *texts[2:]],
        lambda texts: texts[:12],
    ],
    ids=["one less", "a space more", "cut elsewhere", "too few"],
)
def test_other_texts_than_were_done_are_refused_and_the_work_is_kept(tiny_model, texts, out, cut_off, edit):
    folder = cut_off(out())
    with pytest.raises(DataError, match=r"holds vectors of 20 texts which are not the first of these.*remove it"):
        encode(tiny_model, edit(texts), out=out(), texts_per_window=WINDOW)
    assert folder.exists() and num_done(out()) == 20
    assert np.load(encode(tiny_model, texts, out=out())).shape == (90, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_there_is_not_written_over(tiny_model, out, kind):
    out(kind).write_text("mine")
    with pytest.raises(ConfigError, match="is there already; remove it or choose another name"):
        encode(tiny_model, ["a"], out=out(kind))
    assert out(kind).read_text() == "mine" and everything_in(out(kind).parent) == [out(kind).name]


def test_parquet_without_pyarrow_says_what_to_install(out, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"needs pyarrow; pip install 'modernbert\[parquet\]'"):
        check_out(out("parquet"))
    assert check_out(out("npy")) == out("npy")


def test_two_processes_do_not_write_the_same_file(tiny_model, out):
    with VectorFile.unfinished(out(), 32, {}), pytest.raises(ConfigError, match="is in use by another process"):
        encode(tiny_model, ["a"], out=out())
    assert encode(tiny_model, ["a"], out=out()).exists()


def test_an_error_before_the_first_window_leaves_nothing(tiny_model, out):
    with pytest.raises(DataError, match="text 2 is a NoneType"):
        encode(tiny_model, ["a", None], out=out())
    assert everything_in(out().parent) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_one_line_and_what_was_done_stays(tiny_model, texts, out, kind, monkeypatch):
    calls = iter(range(1, 100))

    def no_space(path, *_):
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(f"modernbert.retrieval.{'rows' if kind == 'npy' else 'parquet'}.sync", no_space)
        with pytest.raises(DataError, match=r"\(No space left on device\); free some space.*The 20 texts") as raised:
            encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW)
    assert "\n" not in str(raised.value) and num_done(out(kind)) == 20
    path = encode(tiny_model, texts, out=out(kind), texts_per_window=WINDOW)
    assert np.array_equal(contents(path)[0], encode(tiny_model, texts, texts_per_window=WINDOW))


def test_a_place_that_cannot_be_written_is_one_line(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"vectors.npy.unfinished cannot be written \(Not a directory\)"):
        encode(tiny_model, ["a"], out=tmp_path / "file" / "vectors.npy")


DAMAGE = {
    "progress that is no JSON": lambda folder: (folder / "progress.json").write_text("{"),
    "progress without counts": lambda folder: (folder / "progress.json").write_text("{}"),
    "fewer rows": lambda folder: [os.truncate(path, 300) for path in rows_in(folder)],
    "no rows": lambda folder: [path.unlink() for path in rows_in(folder)],
}


def rows_in(folder):
    return [*folder.glob("rows.npy"), *folder.glob("part-*")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_beginning_is_refused(tiny_model, texts, out, cut_off, kind, damage):
    folder = cut_off(out(kind))
    damage(folder)
    with pytest.raises(DataError, match=f"{folder.name} .*so it is damaged; remove it to begin anew"):
        encode(tiny_model, texts, out=out(kind))


def test_rows_are_counted_only_when_they_are_there(out):
    with VectorFile.unfinished(out(), 4, {}) as file:
        file.counts = Counts(texts=3)
        with pytest.raises(AssertionError):
            file.append(["a", "b"], np.zeros((2, 4), np.float32))


# A real kill.

ENCODES = textwrap.dedent("""
    import sys, time
    import torch
    from modernbert import load
    from modernbert.retrieval import encode
    from tiny_run import sentences

    torch.set_num_threads(1)
    model = load(sys.argv[1], backend="blocked")
    model.encoder.linear = "plain"  # `auto` measures in each process, and may choose what rounds otherwise
    encode(model, sentences(600), out=sys.argv[2], texts_per_window=10, progress=lambda counts: time.sleep(0.002))
""")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_loses_a_window_at_most_and_no_row_is_wrong(tiny_folder, out, kind, tmp_path):
    from tiny_run import sentences

    command = [sys.executable, "-c", ENCODES, tiny_folder, out(kind)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    kills = 0
    for wanted in (0, 50, 200, 350, 500):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        before = num_done(out(kind))
        while process.poll() is None and num_done(out(kind)) < max(wanted, before + 10) and time.monotonic() < deadline:
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert num_done(out(kind)) >= before
    assert kills >= 4 and num_done(out(kind)) >= 200
    torch.set_num_threads(1)
    model = load(tiny_folder, backend="blocked")
    model.encoder.linear = "plain"
    path = encode(model, sentences(600), out=out(kind), texts_per_window=10)
    whole = encode(model, sentences(600), out=tmp_path / f"whole.{kind}", texts_per_window=10)
    assert path.read_bytes() == whole.read_bytes()
