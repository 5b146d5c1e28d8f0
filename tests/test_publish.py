"""`modernbert publish` against a stand-in of the hub: what is sent, what is left out, and what is refused."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
import tiny_run
import torch
from hub_stand_in import OWNER, TOKEN, HubStandIn
from huggingface_hub import ModelCard
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import modernbert
from modernbert.__main__ import app
from modernbert.console import Console
from modernbert.errors import CheckpointError, ConfigError, ModernBertError
from modernbert.publication import revision_name, without_paths
from modernbert.publishing import publish, show
from modernbert.train.recipe import PretrainRun
from modernbert.uploading import Repository

REPO = f"{OWNER}/tiny"
MODEL = {
    "README.md",
    "config.json",
    "loss.png",
    "model.safetensors",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two phases with three checkpoints: the beginning, and the end of each."""
    folder = tmp_path_factory.mktemp("published")
    shards = tiny_run.build_tiny_shards(folder)
    phases = [{"tokens": 4 * 256}, {"name": "anneal", "tokens": 4 * 256, "warmup_tokens": 0, "decay_tokens": "100%"}]
    run = tiny_run.tiny_recipe(shards, steps=8, phases=phases, loop={"checkpoint_tokens": "50%"})
    tiny_run.train(run, folder / "run")
    (folder / "run" / "loss.png").write_bytes(b"\x89PNG as if")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _seconds: None))  # between its retries
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubStandIn() as hub:
        yield hub
    assert hub.unknown == []


def send(run, hub, repo=REPO, *, yes=True, licence="apache-2.0", console=None, **options):
    return publish(
        run, repo, yes=yes, licence=licence, endpoint=hub.url, console=console or Console(quiet=True), **options
    )


def statuses(result):
    return [revision["status"] for revision in result["revisions"]] + [result["main"]["status"]]


def names(run):
    """Checkpoints, oldest first, and the revisions of the last two: they end phases."""
    found = sorted((path.name for path in run.glob("*-0*")), key=lambda name: name.rpartition("-")[2])
    about = [json.loads((run / name / "state" / "progress.json").read_text())["progress"] for name in found]
    return found, [revision_name(name.rpartition("-")[0], p["tokens"]) for name, p in zip(found, about, strict=True)]


# --- what is published


def test_a_dry_run_asks_nobody_and_writes_the_card(run, hub, tmp_path, capsys):
    result = send(run, hub, yes=False, licence=None, card=tmp_path / "card.md")
    show(result, Console())
    assert hub.asked == [] and not result["uploaded"]
    assert statuses(result) == ["not uploaded"] * 3
    card = ModelCard.load(tmp_path / "card.md")
    assert card.data.license is None and "not stated yet" in card.text
    said = capsys.readouterr().out
    assert "--yes" in said and "add --licence" in said and "card.md" in said


def test_phase_ends_become_branches_and_the_newest_is_main(run, hub):
    result = send(run, hub)
    repo, (checkpoints, revisions) = hub.repos[REPO], names(run)
    assert set(repo.branches) == {"main", *revisions[1:]}
    assert [r["checkpoint"] for r in result["revisions"]] == checkpoints[1:]
    assert statuses(result) == ["uploaded"] * 3
    for revision in repo.branches:
        assert set(repo.files(revision)) == MODEL | {".gitattributes"}
        assert len(repo.history(revision)) == 2
    assert repo.files("main")["model.safetensors"] == (run / checkpoints[-1] / "model.safetensors").read_bytes()
    assert repo.files(revisions[1])["model.safetensors"] == (run / checkpoints[1] / "model.safetensors").read_bytes()


def test_what_was_published_downloads_and_opens_with_equal_weights(run, hub, tmp_path):
    transformers = pytest.importorskip("transformers")
    send(run, hub)
    checkpoint, revision = (found[1] for found in names(run))
    folder = huggingface_hub.snapshot_download(REPO, revision=revision, endpoint=hub.url, cache_dir=tmp_path / "cache")
    sent = load_file(run / checkpoint / "model.safetensors")
    ours, theirs = modernbert.load(folder), transformers.AutoModelForMaskedLM.from_pretrained(folder)
    assert all(torch.equal(tensor, sent[name]) for name, tensor in ours.state_dict().items())
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in sent.items())
    assert transformers.AutoTokenizer.from_pretrained(folder).mask_token == "[MASK]"


def test_all_publishes_every_checkpoint_and_a_name_only_that_one(run, hub):
    checkpoints, revisions = names(run)
    assert [r["revision"] for r in send(run, hub, every=True, yes=False)["revisions"]] == revisions
    one = send(run, hub, checkpoints=[checkpoints[0]], yes=False)
    assert [r["revision"] for r in one["revisions"]] == [revisions[0]]
    assert one["main"]["checkpoint"] == checkpoints[0]


@pytest.mark.parametrize(
    ("phase", "tokens", "name"),
    [
        ("stable", 0, "stable-0-tokens"), ("stable", 999, "stable-999-tokens"), ("stable", 12_582_912, "stable-12.583M-tokens"),
        ("anneal", 6_010_000_000, "anneal-6.01B-tokens"), ("stable", 1_719_999_000_000, "stable-1.72T-tokens"),
    ],
)  # fmt: skip
def test_a_revision_is_named_by_phase_and_tokens(phase, tokens, name):
    assert revision_name(phase, tokens) == name


def test_nothing_that_is_published_says_where_things_were(run, hub, tmp_path_factory):
    about = json.loads((run / "run.json").read_text())
    about["sessions"][0]["ended"] = f"error: {run}/metrics.jsonl cannot be written"
    (run / "run.json").write_text(json.dumps(about))
    send(run, hub, every=True, with_state=True)
    for revision in hub.repos[REPO].branches:
        for name, content in hub.repos[REPO].files(revision).items():
            assert str(tmp_path_factory.getbasetemp()).encode() not in content, (revision, name)


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ({"data": {"path": "/home/me/shards/"}}, {"data": {"path": "shards"}}),
        ({"data": {"sources": {"wiki": "../data/wiki_en", "code": "code"}}},
         {"data": {"sources": {"wiki": "wiki_en", "code": "code"}}}),
        ({"phases": [{"checkpoint": "owner/model"}]}, {"phases": [{"checkpoint": "owner/model"}]}),
        ({"phases": [{"checkpoint": "../runs/base/stable-00000100"}]}, {"phases": [{"checkpoint": "stable-00000100"}]}),
        ({"model": {"tile_from": "s3://bucket/small"}}, {"model": {"tile_from": "small"}}),
        ({"changes": ["phases.0.checkpoint='/srv/a b/x' (now None)"]}, {"changes": ["phases.0.checkpoint='a b/x' (now None)"]}),
        ({"ended": "error: /srv/run: full"}, {"ended": "error"}),
        ({"peak_source": "GFLOP/s and/or 1/2"}, {"peak_source": "GFLOP/s and/or 1/2"}),
    ],
)  # fmt: skip
def test_paths_are_cut_to_their_last_part(value, published):
    assert without_paths(value) == published


def test_state_is_published_when_asked_for_and_does_not_outlive_its_weights(run, hub):
    checkpoints, revisions = names(run)
    send(run, hub, checkpoints=checkpoints[:2], with_state=True)
    repo = hub.repos[REPO]
    state = {f"state/{path.name}" for path in (run / checkpoints[1] / "state").iterdir()}
    assert state and set(repo.files("main")) == MODEL | state | {".gitattributes"}
    send(run, hub)
    assert set(repo.files("main")) == MODEL | {".gitattributes"}
    assert set(repo.files(revisions[1])) == MODEL | state | {".gitattributes"}
    assert set(repo.files(revisions[2])) == MODEL | {".gitattributes"}  # nothing of what main held when it was made


# --- again, and cut off


def test_publishing_again_sends_nothing(run, hub):
    send(run, hub)
    uploads, before = list(hub.uploads), dict(hub.repos[REPO].branches)
    assert statuses(send(run, hub)) == ["there already"] * 3
    assert hub.uploads == uploads and hub.repos[REPO].branches == before


@pytest.mark.parametrize("where", ["PUT /lfs/", "POST /api/models/me/tiny/commit/"])
def test_a_publication_that_was_cut_off_goes_on(run, hub, where):
    seen = []

    def drop_from_the_second_on(method, path):
        if f"{method} {path}".startswith(where):
            seen.append(path)
        # The curve and the weights of the first revision are two uploads.
        return "drop" if len(seen) > (2 if "PUT" in where else 1) else None

    hub.fails = drop_from_the_second_on
    with pytest.raises(CheckpointError, match="the same command goes on") as refusal:
        send(run, hub)
    assert "\n" not in str(refusal.value)
    _, revisions = names(run)
    assert len(hub.repos[REPO].history(revisions[1])) == 2 and len(hub.repos[REPO].history("main")) == 1
    hub.fails = lambda method, path: None
    assert statuses(send(run, hub)) == ["there already", "uploaded", "uploaded"]
    assert len(hub.uploads) == len(set(hub.uploads)) == 3  # the curve and two sets of weights, each once
    assert all(len(hub.repos[REPO].history(revision)) == 2 for revision in revisions[1:])


def test_what_a_run_has_saved_since_is_added_and_main_follows(run, hub):
    checkpoints, revisions = names(run)
    send(run, hub, checkpoints=checkpoints[:2])
    first = hub.repos[REPO].branches[revisions[1]]
    assert statuses(send(run, hub)) == ["there already", "uploaded", "uploaded"]
    assert hub.repos[REPO].branches[revisions[1]] == first
    main = hub.repos[REPO].files("main")
    assert json.loads(main["run.json"])["published"]["checkpoint"] == checkpoints[-1]


def test_main_is_set_back_only_when_asked_to(run, hub, capsys):
    checkpoints, _ = names(run)
    send(run, hub)
    weights = hub.repos[REPO].files("main")["model.safetensors"]
    result = send(run, hub, checkpoints=[checkpoints[0]])
    assert (
        result["main"]["status"] == f"stays at {checkpoints[-1]}"
        and f"--main {checkpoints[0]}" in capsys.readouterr().err
    )
    assert hub.repos[REPO].files("main")["model.safetensors"] == weights
    assert send(run, hub, main=checkpoints[0])["main"]["status"] == "uploaded"
    assert hub.repos[REPO].files("main")["model.safetensors"] != weights


def test_a_card_that_people_edited_stays(run, hub, capsys):
    checkpoints, _ = names(run)
    send(run, hub, checkpoints=checkpoints[:2])
    repo = hub.repos[REPO]
    edited = repo.files("main")["README.md"].replace(b"# tiny", b"# Our tiny one")
    repo.add("main", {**repo.commits[repo.at("main")], "README.md": (False, edited)}, "by hand")
    send(run, hub)
    assert repo.files("main")["README.md"] == edited and "written by hand" in capsys.readouterr().err
    assert json.loads(repo.files("main")["run.json"])["published"]["checkpoint"] == checkpoints[-1]
    send(run, hub, replace=True)
    assert b"# tiny" in repo.files("main")["README.md"]


def test_other_weights_are_committed_over_only_when_asked_to(run, hub):
    send(run, hub)
    checkpoints, revisions = names(run)
    path = run / checkpoints[1] / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"revision {revisions[1]} with other weights"):
        send(run, hub)
    assert statuses(send(run, hub, replace=True))[0] == "uploaded"
    assert hub.repos[REPO].files(revisions[1])["model.safetensors"] == path.read_bytes()


@pytest.mark.parametrize(
    "theirs", [{}, {"run.json": (False, b'{"sessions": "none", "data": 1}')}, {"run.json": (False, b"[")}]
)
def test_the_model_of_another_run_is_committed_over_only_when_asked_to(run, hub, theirs):
    hub.create(SimpleNamespace(json={"name": "tiny", "organization": OWNER}))
    others = {".gitattributes": (False, b""), "config.json": (False, b"{}"), "pytorch_model.bin": (True, b"weights")}
    hub.repos[REPO].add("main", others | theirs, "another model")
    with pytest.raises(ConfigError, match="not of this run"):
        send(run, hub)
    assert set(hub.repos[REPO].branches) == {"main"} and hub.uploads == []
    send(run, hub, replace=True)
    assert set(hub.repos[REPO].files("main")) == MODEL | {".gitattributes"}


def test_private_means_private(run, hub):
    send(run, hub, private=True)
    assert hub.repos[REPO].private
    hub.repos[REPO].private = False
    with pytest.raises(ConfigError, match="already and public"):
        send(run, hub, private=True)


# --- the card


def test_the_card_tells_the_run_and_its_recipe_is_one(run, hub):
    send(run, hub, languages=["en"])
    (_, *revisions), text = names(run)[1], hub.repos[REPO].files("main")["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "apache-2.0" and data["language"] == ["en"] and data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "fill-mask" and "modernbert" in data["tags"] and "base_model" not in data
    recipe = text.partition("```toml\n")[2].partition("\n```")[0]
    assert [phase.name for phase in PretrainRun.parse(tomllib.loads(recipe)).phases] == ["stable", "anneal"]
    for fact in (*revisions, "94,912", "corpus.txt", "](loss.png)", "torch 2.", 'model="me/tiny"', "| anneal |"):
        assert fact in text
    of_revision = hub.repos[REPO].files(revisions[0])["README.md"].decode()
    assert f'revision="{revisions[0]}"' in of_revision and f"Revision `{revisions[0]}` is the checkpoint" in of_revision


def test_a_card_says_what_is_not_known(run, hub, tmp_path, capsys):
    about = json.loads((run / "run.json").read_text())
    about["recipe"]["data"]["path"] = str(tmp_path / "moved")
    (run / "run.json").write_text(json.dumps(about))
    (run / "loss.png").unlink()
    send(run, hub)
    said, files = capsys.readouterr().err, hub.repos[REPO].files("main")
    assert "moved" in said and "no curve" in said
    text = files["README.md"].decode()
    assert "not at hand" in text and "loss.png" not in text and "loss.png" not in files
    assert "languages of its text are not stated" in text


def test_text_at_an_address_is_told_of_by_its_manifest_alone(run, hub, monkeypatch, tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    from modernbert.remote import Remote

    monkeypatch.setenv("MODERNBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    about = json.loads((run / "run.json").read_text())
    manifest = Path(about["recipe"]["data"]["path"]) / "manifest.json"
    Remote("memory://bucket/shards").write_bytes("manifest.json", manifest.read_bytes())
    about["recipe"]["data"]["path"] = "memory://bucket/shards"
    (run / "run.json").write_text(json.dumps(about))
    send(run, hub)
    text = hub.repos[REPO].files("main")["README.md"].decode()
    assert "corpus.txt" in text and "not at hand" not in text
    assert not (tmp_path / "cache").exists()


def test_a_main_whose_run_json_is_anybodys_is_no_traceback(run, hub):
    send(run, hub)
    about = json.loads((run / "run.json").read_text())
    for published in (["x"], {"tokens": "many"}, "x"):
        with mock.patch.object(Repository, "read_json", return_value={**about, "published": published}), \
                mock.patch.object(Repository, "differing", return_value={"model.safetensors", "config.json"}):  # fmt: skip
            send(run, hub, replace=True)


def test_a_base_model_and_data_sets_of_the_hub_are_named(run, hub):
    about = json.loads((run / "run.json").read_text())
    about["recipe"]["phases"][0]["checkpoint"] = "answerdotai/ModernBERT-base"
    (run / "run.json").write_text(json.dumps(about))
    manifest = {"settings": {"sources": ["hf:owner/corpus:en@train", "/srv/own.jsonl"]}, "splits": {}}
    with mock.patch("modernbert.publication.read_manifest", return_value=manifest), \
            mock.patch("modernbert.publication.data_fingerprint", return_value=about["data"]["text"]):  # fmt: skip
        send(run, hub)
    text = hub.repos[REPO].files("main")["README.md"].decode()
    data = ModelCard(text).data
    assert data.base_model == "answerdotai/ModernBERT-base" and data.datasets == ["owner/corpus"]
    assert "own.jsonl" in text and "/srv" not in text


# --- refusals


def test_a_run_that_is_being_trained_is_published_and_that_is_said(run, hub, capsys):
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("of the run")
        lock.flush()
        send(run, hub, yes=False)
        assert (run / ".lock").read_text() == "of the run"
    assert "another process is training" in capsys.readouterr().err
    send(run, hub, yes=False)
    assert "another process" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo": "tiny"}, "no repository's name"), ({"repo": "a/b/c"}, "no repository's name"),
        ({"repo": "me/bad name"}, "no repository's name"), ({"repo": "me/x--y"}, "no repository's name"),
        ({"licence": None}, "add --licence"), ({"licence": "Apache 2!"}, "no identifier"),
        ({"checkpoints": ["stable-00000777"]}, "no such checkpoint; there are stable-00000000"),
        ({"main": "stable-00000777"}, "no such checkpoint"),
        ({"checkpoints": ["stable-00000000"], "every": True}, "not both"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_one_line(run, hub, options, message):
    with pytest.raises(ModernBertError, match=message) as refusal:
        send(run, hub, **options)
    assert "\n" not in str(refusal.value) and hub.asked == []


def test_folders_without_a_run_or_checkpoints_are_refused(run, hub, tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        send(tmp_path, hub)
    for path in run.glob("*-0*"):
        shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        send(run, hub)


def test_a_checkpoint_that_is_not_sound_is_not_published(run, hub):
    path = run / names(run)[0][-1] / "model.safetensors"
    save_file(
        {name: tensor * float("nan") for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="is not published"):
        send(run, hub)
    assert hub.asked == []


def test_two_checkpoints_of_one_name_are_refused(run, hub):
    last = names(run)[0][-1]
    shutil.copytree(run / last, run / f"{last[:-1]}{int(last[-1]) + 1}")
    with pytest.raises(ConfigError, match="would all be the revision"):
        send(run, hub, every=True)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda method, path: 401, "hf auth login"),
        (lambda method, path: 403 if path.endswith("/create") else None, "may not write there"),
        (lambda method, path: 403 if "/commit/" in path else None, "may not write there"),
        (lambda method, path: 500 if "/refs" in path else None, "the same command goes on"),
        (lambda method, path: "drop" if "/create" in path else None, "check the network"),
    ],
)
def test_a_hub_that_refuses_or_breaks_off_is_told_in_one_line(run, hub, fails, message):
    hub.fails = fails
    with pytest.raises(ModernBertError, match=message) as refusal:
        send(run, hub)
    assert "\n" not in str(refusal.value) and REPO in str(refusal.value)


@pytest.mark.parametrize("failure", ["drop", 503])
def test_a_run_that_cannot_be_read_from_the_hub_is_not_taken_for_none(run, hub, failure):
    send(run, hub, checkpoints=names(run)[0][:2])
    hub.fails = lambda method, path: failure if "/resolve/" in path else None
    with pytest.raises(CheckpointError, match="the same command goes on"):
        send(run, hub, replace=True)


def test_an_owner_that_is_not_ones_own_is_refused(run, hub):
    with pytest.raises(ConfigError, match="may not write there"):
        send(run, hub, repo="somebody/tiny")


def test_no_token_no_network_and_offline_mode_are_told_in_one_line(run, hub, monkeypatch):
    with pytest.raises(CheckpointError, match="check the network"):
        send(run, SimpleNamespace(url="http://127.0.0.1:9"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        send(run, hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        send(run, hub)


def test_a_checkpoint_that_goes_away_meanwhile_is_told(run, hub):
    def remove(method, path):
        if path.endswith("/refs"):
            shutil.rmtree(run / names(run)[0][-1])

    hub.fails = remove
    with pytest.raises(CheckpointError, match="give the same command again"):
        send(run, hub)


# --- the command


def test_the_command_does_a_dry_run_and_then_uploads(run, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modernbert.uploading.HfApi", lambda endpoint, **_: huggingface_hub.HfApi(endpoint=hub.url))
    tried = CliRunner().invoke(app, ["publish", str(run), REPO])
    assert tried.exit_code == 0 and "nothing was uploaded" in tried.stdout and hub.asked == []
    assert (tmp_path / "model-card.md").read_text().startswith("---\n")
    done = CliRunner().invoke(app, ["publish", str(run), REPO, "--licence", "mit", "--yes", "--json"])
    assert json.loads(done.stdout)["uploaded"] and set(hub.repos[REPO].files("main")) >= MODEL


THROUGH_XET = """
import hashlib, sys
from pathlib import Path
from hub_stand_in import HubStandIn
from modernbert.console import Console
from modernbert.publishing import publish

run, storage = map(Path, sys.argv[1:])
with HubStandIn() as hub:
    hub.xet = storage
    files = [run / "loss.png", *run.glob("*/model.safetensors")]
    hub.in_xet = {hashlib.sha256(path.read_bytes()).hexdigest(): path.read_bytes() for path in files}
    how = {"licence": "mit", "yes": True, "endpoint": hub.url, "console": Console(quiet=True)}
    first, second = (publish(run, "me/tiny", **how)["main"]["status"] for _ in range(2))
    print(first, second, len(hub.repos["me/tiny"].branches), len(hub.uploads), hub.unknown, sep="|")
"""


@pytest.mark.slow
def test_the_clients_own_storage_is_used_where_it_has_it(run, tmp_path):
    pytest.importorskip("hf_xet")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", THROUGH_XET, str(run), str(tmp_path / "xet")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "uploaded|there already|3|0|[]"
    assert any((tmp_path / "xet").rglob("*.mdb"))
