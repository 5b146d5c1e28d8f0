"""metrics.jsonl: what a session that goes on keeps of it, found from its end."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.train import log
from modernbert.train.log import MetricsLog, draw_curve, last_evaluation, read_metrics


def a_run(rows, folder, torn=b""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + torn)
    return folder


def written(num_steps, late):
    """Rows of a run: an evaluation every third step, a save told up to `late` steps after its own."""
    rows, told = [], []
    for step in range(num_steps + 1):
        rows.append(
            {"kind": "eval" if step % 3 == 0 else "train", "step": step, "tokens": step, "loss": 1.0, "pad": "é" * step}
        )
        if step % 4 == 0:
            told.append((step + late, {"kind": "save", "step": step}))
        rows += [row for due, row in told if due == step]
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("log")


@given(
    num_steps=st.integers(0, 40), late=st.integers(0, 3), after=st.integers(-1, 45), block=st.sampled_from([1, 7, 64, 2**16]),
    torn=st.sampled_from([b"", b'{"kind": "tra', b"\0\0\0", b'{"kind": "train", "step": 4\n', b"\xff\xfe\n"]),
)  # fmt: skip
def test_what_is_kept_is_what_a_look_at_every_line_would_keep(folder, num_steps, late, after, block, torn):
    rows = written(num_steps, late)
    a_run(rows, folder, torn)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "_BLOCK_BYTES", block)
        metrics = MetricsLog(folder, after_step=after)
        metrics.write({"kind": "train", "step": 99})
        metrics.close()
    kept = [row for row in rows if row["step"] <= after]
    assert read_metrics(folder) == [*kept, {"kind": "train", "step": 99}]


def test_a_run_set_back_forgets_the_lines_beyond(tmp_path):
    metrics = MetricsLog(a_run(written(9, 1), tmp_path / "run"), after_step=9)
    metrics.drop_after(5)
    metrics.write({"kind": "train", "step": 6})
    metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path / "run") if row["kind"] != "save"] == [0, 1, 2, 3, 4, 5, 6]


def test_the_last_evaluation_is_found_from_behind(tmp_path):
    assert last_evaluation(a_run(written(20, 1), tmp_path / "run"))["step"] == 18
    assert last_evaluation(a_run([{"kind": "train", "step": 1}], tmp_path / "none")) is None
    assert last_evaluation(tmp_path / "nothing") is None


def test_a_curve_is_drawn_of_a_run_that_has_no_steps_yet(tmp_path):
    run = a_run([{"kind": "eval", "step": 0, "tokens": 0, "loss": 5.0}], tmp_path / "run")
    assert draw_curve(run).read_bytes().startswith(b"\x89PNG")
