"""Builds with filters, scores and several processes: what is left out, and the same bytes whoever did the work."""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from modernbert.errors import ConfigError, DataError
from modernbert.text import crew
from modernbert.text.build import build_shards
from modernbert.text.filters import Filters, Looker
from modernbert.text.shards import Shards, read_manifest, summarize
from modernbert.text.shuffled import order_remark
from modernbert.text.tokenizer import save_tokenizer

GERMAN = "Der Ausschuss trat am Dienstag zusammen und verschob die Abstimmung, bis alle Berichte gelesen waren."
QUESTION = "Which of the two rivers that meet below the old town carries more water in the dry season of a common year?"


class Interrupted(Exception):
    pass


def die(*_):
    os._exit(1)


def sentence(
    draw, words=("the river", "a town", "was old", "had been", "and then", "people of", "under it", "new bridge")
):
    return " ".join(draw.choices(words, k=12)) + f" in the year {draw.randrange(10**6)}."


@pytest.fixture
def source(tmp_path):
    draw = random.Random(0)
    texts = [" ".join(sentence(draw) for _ in range(12)) for _ in range(120)]
    texts[40:40] = [texts[3].replace("river", "brook", 1), GERMAN * 3, f"{texts[5][:300]} {QUESTION} {texts[6][:300]}"]
    texts.append(texts[7])
    path = tmp_path / "text" / "a.jsonl"
    path.parent.mkdir()
    lines = [{"text": text, "quality": number / 100} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    return path


@pytest.fixture
def filters(tmp_path):
    return Filters(
        near_duplicates=0.8,
        languages=("en",),
        decontaminate=(tmp_path / "eval.jsonl",),
        decontaminate_fields=("question",),
    )


@pytest.fixture
def build(tmp_path, source, tokenizer):
    def run(out="out", **options):
        settings = {"heldout": 0.1, "shard_tokens": 6000, "tokenizer": tokenizer, "score_field": "quality"}
        return build_shards(source, out=tmp_path / out, **(settings | options))

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_each_filter_leaves_out_its_own_and_names_it(build, filters, source):
    manifest = build(filters=filters)
    skipped = {reason: entry["count"] for reason, entry in manifest["skipped"].items()}
    assert skipped == {"near-duplicate": 1, "other language": 1, "contaminated": 1, "exact duplicate": 1}
    (near,) = manifest["skipped"]["near-duplicate"]["examples"]
    assert near.startswith(f"{source}#40 (0.9") and near.endswith(f" of {source}#3)")
    assert manifest["skipped"]["other language"]["examples"][0].startswith(f"{source}#41 (de ")
    assert manifest["skipped"]["contaminated"]["examples"][0].endswith("eval.jsonl#0)")
    assert sum(split["documents"] for split in manifest["splits"].values()) == 120
    assert "1 near-duplicate" in summarize(manifest)
    assert set(build("plain")["skipped"]) == {"exact duplicate"}


def test_the_bytes_do_not_depend_on_workers_memory_or_interruptions(tmp_path, build, filters, monkeypatch):
    whole = build("whole", filters=filters)
    assert len(whole["splits"]["train"]["shards"]) > 2
    monkeypatch.setattr("modernbert.text.build._BATCH_CHARS", 9000)  # batches enough to be done out of order

    def interrupt(_documents, tokens):
        if tokens > 15_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        build("broken", filters=filters, num_workers=2, progress=interrupt)
    assert list((tmp_path / "broken").glob("shard-*.bin"))
    assert not list((tmp_path / "broken").glob("*.tmp")) and not list((tmp_path / "broken").glob(".scratch*"))
    build("broken", filters=filters, num_workers=3, memory_bytes=16 * 2**20)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_documents_of_finished_shards_are_looked_at_but_not_tokenised_again(tmp_path, build, filters, monkeypatch):
    monkeypatch.setattr("modernbert.text.build._BATCH_CHARS", 9000)
    tokenised = []
    real = Looker._ids
    monkeypatch.setattr(Looker, "_ids", lambda self, cut: tokenised.append(len(cut)) or real(self, cut))

    def interrupt(_documents, tokens):
        if tokens > 15_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        build(filters=filters, progress=interrupt)
    shards = json.loads((tmp_path / "out" / "build.json").read_bytes())["shards"]
    num_done = sum(shard["documents"] for split in shards.values() for shard in split)
    tokenised.clear()
    build(filters=filters)
    assert num_done >= 10 and sum(tokenised) == 121 - num_done  # the near-duplicate, too: who tokenises does not know


def test_a_worker_that_dies_is_one_line_and_the_build_goes_on(build, monkeypatch):
    monkeypatch.setattr(crew, "_look", die)  # reaches the workers by its name
    with pytest.raises(DataError, match="fewer --workers or less --memory"):
        build(num_workers=2)
    monkeypatch.undo()
    assert build()["splits"]["train"]["documents"] > 50


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_process_outlives_a_build_that_is_killed_and_nobody_else_builds_there_before(tmp_path, source, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer", model_max_length=128)
    program = f"""
import multiprocessing.forkserver, time
from modernbert.text import build_shards, load_tokenizer

def wait(*_):
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    print(server, *[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(100)

build_shards(
    {str(source)!r}, tokenizer=load_tokenizer({str(tmp_path / "tokenizer")!r}), out={str(tmp_path / "out")!r},
    num_workers=2, progress=wait,
)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as build:
        processes = [int(number) for number in build.stdout.readline().split()]
        alive = [is_alive(process) for process in processes]
        with pytest.raises(DataError, match="out is being written by another process"):
            build_shards(source, tokenizer=tokenizer, out=tmp_path / "out")
        build.kill()
    assert len(alive) >= 2 and all(alive)  # the server they are copied from, and whoever has work already
    deadline = time.monotonic() + 20
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, processes))
    assert build_shards(source, tokenizer=tokenizer, out=tmp_path / "out")["splits"]["train"]["documents"] > 50


def test_a_script_that_asks_for_workers_without_a_guard_is_told_so(tmp_path, source, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer", model_max_length=128)
    (tmp_path / "script.py").write_text(f"""
from modernbert.errors import DataError
from modernbert.text import build_shards, load_tokenizer
try:
    build_shards(
        {str(source)!r}, tokenizer=load_tokenizer({str(tmp_path / "tokenizer")!r}), out={str(tmp_path / "out")!r},
        num_workers=2,
    )
except DataError as error:
    raise SystemExit(str(error))
""")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        'the script that builds must do so under `if __name__ == "__main__":`, for each worker imports it'
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [BrokenPipeError(), BrokenProcessPool("died before"), EOFError()])
def test_workers_that_died_before_they_were_asked_are_one_line(build, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor.submit", refuse)
    with pytest.raises(DataError, match="fewer --workers or less --memory"):
        build(num_workers=2)


def test_scores_come_back_beside_their_documents(tmp_path, build, source, tokenizer):
    manifest = build()
    assert manifest["scores"] is True
    quantiles = manifest["splits"]["train"]["score_quantiles"]
    found = Shards.open(tmp_path / "out").scores
    assert quantiles == pytest.approx(np.quantile(found, [0, 0.25, 0.5, 0.75, 1]))
    assert f"Scores: {quantiles[0]:.4g} to {quantiles[4]:.4g}; a quarter below {quantiles[1]:.4g}, " in summarize(
        manifest
    )
    numbers = {json.loads(line)["text"]: json.loads(line)["quality"] for line in source.read_text().splitlines()[:-1]}
    for split in ("train", "heldout"):
        shards = Shards.open(tmp_path / "out", split)
        assert shards.scores.dtype == np.float32 and len(shards.scores) == len(shards)
        texts = [tokenizer.decode(shards.tokens(index).tolist()).strip() for index in range(len(shards))]
        assert shards.scores.tolist() == pytest.approx([numbers[text] for text in texts])
    (tmp_path / "out" / "shard-00001.score").write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-00001\.score has 0 bytes"):
        Shards.open(tmp_path / "out")


def test_without_a_score_field_there_are_no_scores(tmp_path, build):
    assert build(score_field=None)["scores"] is False
    assert Shards.open(tmp_path / "out").scores is None
    assert not list((tmp_path / "out").glob("*.score"))


def test_a_folder_of_an_older_version_reads_as_before(tmp_path, build):
    build(score_field=None)
    manifest = read_manifest(tmp_path / "out")
    old = {name: value for name, value in manifest.items() if name not in ("scores", "remarks")}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(old))
    shards = Shards.open(tmp_path / "out")
    assert shards.scores is None and len(shards) > 50
    assert build(score_field=None) == old  # the same settings: this very build
    assert "Left out" in summarize(old)


def test_other_filters_are_another_build(build, filters):
    settings = build(filters=filters)["settings"]
    assert settings["language_by"].startswith("py3langid ") and settings["near_duplicates_by"].startswith("rensa ")
    with pytest.raises(ConfigError, match=r"near_duplicates \(0.8 there, 0.7 here\)"):
        build(filters=Filters(**{**vars(filters), "near_duplicates": 0.7}))
    with pytest.raises(ConfigError, match=r"language \(\['en'\] there, None here\)"):
        build(filters=Filters(**{**vars(filters), "languages": ()}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "workers=0 is out of range"),
        ({"memory_bytes": 10**6}, "memory=0.954 is out of range; the least is 16 megabytes"),
        ({"filters": Filters(near_duplicates=1.5)}, "near_duplicates=1.5"),
        ({"filters": Filters(languages=["xx"])}, "language=xx is not known"),
    ],
)
def test_settings_out_of_range_leave_nothing_behind(tmp_path, build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
    assert not (tmp_path / "out").exists()


def test_a_document_without_a_place_to_cut_is_told_of(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "ab" * 80_000}) + "\n" + json.dumps({"text": "the cat " * 20})
    )
    manifest = build_shards(tmp_path / "a.jsonl", tokenizer=tokenizer, out=tmp_path / "out", heldout=0)
    assert manifest["remarks"][0].startswith("2 runs of 65,536 characters without a space")
    assert manifest["remarks"][0] in summarize(manifest)


def test_text_in_order_of_its_sources_is_told_of_and_shuffled_text_is_not(tmp_path, tokenizer):
    draw = random.Random(0)
    alphabets = ("abcdef", "ghijkl", "mnopqr", "stuvwx")
    kinds = [["".join(draw.choices(letters, k=6)) for _ in range(40)] for letters in alphabets]
    texts = [" ".join(draw.choices(kind, k=30)) for kind in kinds for _ in range(100)]
    for name, order in (("sorted", texts), ("shuffled", draw.sample(texts, len(texts)))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in order))
        manifest = build_shards(tmp_path / f"{name}.jsonl", tokenizer=tokenizer, out=tmp_path / name, heldout=0)
        remarks = [remark for remark in manifest["remarks"] if "look unshuffled" in remark]
        assert len(remarks) == (name == "sorted"), manifest["remarks"]
        assert order_remark(Shards.open(tmp_path / name)) == (remarks[0] if remarks else None)
