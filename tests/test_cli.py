"""The command line: the whole chain, what is printed, and that every refusal is one line and leaves nothing behind."""

import contextlib
import errno
import gzip
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import safetensors.torch
import tiny_run
import tomli_w
import torch
import typer
from matplotlib.figure import Figure
from torch.distributed.checkpoint import FileSystemWriter
from typer.testing import CliRunner

from modernbert import load
from modernbert.__main__ import app, main
from modernbert.batch import PackedBatch
from modernbert.train import checkpoint as checkpoint_module
from modernbert.train import log as log_module
from modernbert.train.log import read_metrics

pytestmark = pytest.mark.usefixtures("own_place")

HERE = ["--device", "cpu", "--threads", "1"]


def run(*arguments, stdin=""):
    """`modernbert ARGUMENTS` in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["modernbert", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        tiny_run.quick_peak(),
    ):
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def result(*arguments, stdin=""):
    """What a command prints with --json."""
    found = run(*arguments, "--json", stdin=stdin)
    assert found.status == 0, found.err
    return json.loads(found.out)


def refusal(*arguments, stdin=""):
    found = run(*arguments, stdin=stdin)
    assert found.status == 2, (found.status, found.out, found.err)
    assert found.err.startswith("modernbert: ") and found.err.count("\n") == 1, found.err
    assert "Traceback" not in found.err and not found.out
    return found.err


def everything_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Corpus, tokenizer, shards and run of a tiny encoder, each made by its command."""
    folder = tmp_path_factory.mktemp("chain")
    corpus = tiny_run.write_corpus(folder / "corpus.txt")
    vocabulary = ["--vocab-size", "320", "--documents", "line"]
    said = {"tokenizer train": result("tokenizer", "train", corpus, *vocabulary, "--out", folder / "tokenizer")}
    build = ["--tokenizer", folder / "tokenizer", "--documents", "line", "--heldout", "0.1", "--min-tokens", "1"]
    said["data build"] = result("data", "build", corpus, *build, "--out", folder / "shards")
    said["data inspect"] = result("data", "inspect", folder / "shards", "--sequence-length", "32")
    (folder / "recipe.toml").write_text(tomli_w.dumps(tiny_run.recipe(folder / "shards")))
    said["pretrain"] = result("pretrain", folder / "recipe.toml", "--out", folder / "run", *HERE)
    return SimpleNamespace(folder=folder, corpus=corpus, said=said, shards=folder / "shards", run=folder / "run",
                           recipe=folder / "recipe.toml", tokenizer=folder / "tokenizer", build=build)  # fmt: skip


def test_the_chain_from_text_to_a_filled_mask(chain):
    assert chain.said["data build"]["splits"]["train"]["documents"] > 300
    packing = chain.said["data inspect"]["packing"]
    assert packing["filled"] > 0.9 and packing["sequence_length"] == 32 and 0 < packing["documents_cut"] < 1
    assert chain.said["pretrain"]["step"] >= 12 and 0 < chain.said["pretrain"]["loss"] < 6
    assert Path(chain.said["pretrain"]["checkpoint"]).parent == chain.run
    answer = result("fill-mask", chain.run, "The cat sat on [MASK] mat.", "--top-k", "3")
    assert answer["text"] == "The cat sat on [MASK] mat." and [len(mask) for mask in answer["masks"]] == [3]
    for prediction in answer["masks"][0]:
        assert prediction["filled"] == f"The cat sat on {prediction['text']} mat."
        assert 0 < prediction["probability"] < 1
    assert (chain.run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_folder_stands_for_its_newest_checkpoint(chain):
    question = ("The cat sat on [MASK] mat.", "--top-k", "2")
    newest = chain.said["pretrain"]["checkpoint"]
    assert result("fill-mask", chain.run, *question) == result("fill-mask", newest, *question)


def test_masks_are_filled_line_by_line_from_standard_input(chain):
    found = run("fill-mask", chain.run, "--json", stdin="The [MASK] sat.\nDogs [MASK] [MASK] hills.\n")
    answers = [json.loads(line) for line in found.out.splitlines()]
    assert [len(answer["masks"]) for answer in answers] == [1, 2]
    joint = run("fill-mask", chain.run, "Dogs [MASK][MASK] hills.", "--joint", "--json")
    assert len(json.loads(joint.out)["masks"]) == 1


def test_what_a_person_sees_is_text(chain):
    shown = run("fill-mask", chain.run, "The cat sat on [MASK] mat.")
    assert shown.status == 0 and "probability" in shown.out and "The cat sat on" in shown.out
    assert "| train |" in run("data", "inspect", chain.shards, "--sequence-length", "32").out
    assert "are cut into pieces" in run("data", "inspect", chain.shards).out
    assert "quickstart" in run("recipes").out.splitlines()
    finished = run("pretrain", chain.recipe, "--out", chain.run, *HERE)
    assert finished.status == 0 and "held-out loss" in finished.out and "nothing to do" in finished.err


def test_every_command_has_a_json_form(chain):
    assert {"machine", "packages", "speed", "choices"} <= result("doctor", *HERE).keys()
    assert "quickstart" in result("recipes")["recipes"]
    report = result("tokenizer", "report", chain.tokenizer, chain.corpus, "--against", chain.tokenizer)
    assert report and report.keys() >= chain.said["tokenizer train"].keys() - {"against"}
    again = result("data", "build", chain.corpus, *chain.build, "--out", chain.shards)
    assert again == chain.said["data build"], "a finished build is left as it is"
    assert result("pretrain", chain.recipe, "--out", chain.run, *HERE) == chain.said["pretrain"]


def commands(command=None, path=()):
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize("path,command", [pytest.param(p, c, id=" ".join(p) or "modernbert") for p, c in commands()])
def test_help_tells_of_every_option_and_command(path, command):
    found = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"})
    text = re.sub(r"\x1b\[[0-9;]*m", "", found.output)
    assert found.exit_code == 0
    for option in command.params:
        name = max(option.opts, key=len)
        assert name in text or name.upper() in text, name
        assert option.help, f"{name} says nothing of itself"
    for name in getattr(command, "commands", {}):
        assert name in text
    assert command.help and command.help.split()[0] in text


def test_the_public_tools_open_every_checkpoint_of_a_run(chain):
    transformers = pytest.importorskip("transformers")
    ours = sorted(chain.run.glob("*-????????"))
    assert len(ours) >= 3
    texts = ["The cat sat on a [MASK] mat.", "Dogs ran over green hills", "", "  naïve 漢字 😀"]
    for folder in ours:
        model, info = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert type(model).__name__ == "ModernBertForMaskedLM"
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        task = load(folder)
        for text in texts:
            assert theirs(text)["input_ids"] == task.tokenizer.encode(text).ids
        assert theirs.mask_token_id == task.tokenizer.token_to_id("[MASK]")
    ids = torch.tensor([task.tokenizer.encode(texts[0]).ids])
    with torch.inference_mode():
        expected = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        found = task.logits(PackedBatch.from_sequences(ids))
    assert torch.allclose(found, expected, atol=1e-4)


# Bad input. `bad` is a folder with one of everything that can go wrong; nothing may appear in it.


@pytest.fixture
def bad(tmp_path, chain):
    folder = tmp_path
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n\n \n")
    (folder / "binary.txt").write_bytes(b"\0\1\2" * 100)
    (folder / "broken.txt").write_bytes(b"\xff\xfe\xfa\n" * 50)
    whole = gzip.compress("\n".join(tiny_run.sentences(200)).encode(), mtime=0)
    (folder / "short.txt.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "few.txt").write_text("the cat sat on the mat\n" * 3)
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "not.toml").write_text("loop = = 3\n")
    shutil.copytree(chain.shards, folder / "cut")
    binary = next((folder / "cut").glob("shard-*.bin"))
    binary.write_bytes(binary.read_bytes()[:-2])
    shutil.copytree(chain.shards, folder / "unfinished")
    (folder / "unfinished" / "manifest.json").unlink()
    return folder


BAD_TEXT = [
    ("empty", ""),
    ("empty.txt", ""),
    ("blank.txt", ""),
    ("binary.txt", "binary.txt is not UTF-8 text: it has NUL bytes in it"),
    ("broken.txt", ""),
    ("short.txt.gz", "short.txt.gz is cut short or damaged"),
    ("nowhere.txt", "nowhere.txt: no such file or folder; check the path"),
    ("bad.jsonl", ""),  # its broken line is left out, and what remains is too little
]


@pytest.mark.parametrize("name,message", BAD_TEXT)
def test_text_that_cannot_be_learnt_from_is_refused(bad, name, message):
    before = everything_in(bad)
    found = run("tokenizer", "train", name, "--vocab-size", "320", "--out", "out")
    assert found.status == 2 and message in found.err and "Traceback" not in found.err
    assert found.err.splitlines()[-1].startswith("modernbert: ")
    assert len(found.err.splitlines()) == 1
    assert everything_in(bad) == before


@pytest.mark.parametrize(
    "name,message", [("empty", "no documents"), ("empty.txt", "empty"), ("broken.txt", "broken UTF-8")]
)
def test_a_corpus_without_any_text_is_called_that(bad, name, message):
    assert message in refusal("tokenizer", "train", name, "--vocab-size", "320", "--out", "out")


@pytest.mark.parametrize(
    "name,message",
    [
        pytest.param(name, message)
        if name in ("binary.txt", "short.txt.gz", "bad.jsonl") else (name, message)
        for name, message in BAD_TEXT
    ],
)  # fmt: skip
def test_text_that_cannot_be_built_from_is_refused(bad, chain, name, message):
    before = everything_in(bad)
    assert message in refusal("data", "build", name, "--tokenizer", chain.tokenizer, "--out", "out")
    assert everything_in(bad) == before


@pytest.mark.parametrize(
    "command,message",
    [
        ("tokenizer train few.txt --vocab-size 8192 --out out", "the text supports "),
        ("tokenizer train few.txt --vocab-size 330 --out out", "vocab_size=330 is not a multiple of 64"),
        ("tokenizer train few.txt --vocab-size 64 --out out", "vocab_size=64 is too small; the least is 320"),
        ("tokenizer report nowhere few.txt", "nowhere"),
        ("tokenizer report TOKENIZER empty", "no documents in empty; give some text"),
        ("tokenizer report TOKENIZER few.txt --against some/where", "some/where: no such folder here"),
        ("data build few.txt --tokenizer ./nowhere --out out", "./nowhere: no such file or folder"),
        ("data build few.txt --tokenizer empty --out out", "tokenizer.json: no such file; train one with"),
        ("data build few.txt --tokenizer few.txt --out out", "few.txt is no tokenizer that can be read"),
        ("data build few.txt --tokenizer TOKENIZER --out out --heldout 1", "heldout=1.0 is out of range"),
        ("data build few.txt --tokenizer TOKENIZER --out out --min-tokens 0", "min_tokens=0 is out of range"),
        ("data build few.txt --tokenizer TOKENIZER --out out --min-tokens 999", "no documents in few.txt; left out: 1 too short"),
        ("data inspect cut", "and the manifest says"),
        ("data inspect unfinished", "has no manifest.json: the build did not finish; run the same command again"),
        ("data inspect empty", "has no manifest.json"),
        ("data inspect nowhere", "nowhere: no such folder; build it with"),
        ("data inspect SHARDS --sequence-length 2", "sequence_length=2 must exceed 2"),
        ("pretrain nowhere", "nowhere: no such recipe or file; recipes are "),
        ("pretrain nowhere.toml", "nowhere.toml: no such recipe file"),
        ("pretrain not.toml", "not.toml is not valid TOML"),
        ("pretrain RECIPE data.path=cut --out out", "and the manifest says"),
        ("pretrain RECIPE data.path=nowhere --out out", "nowhere: no such folder"),
        ("pretrain RECIPE data.path --out out", "'data.path' is no setting; write section.key=value"),
        ("pretrain RECIPE data.paht=x --out out", "data.paht: unknown key; did you mean 'path'?"),
        ("pretrain RECIPE phases.0.micro_batch_tokens=31 --out out", "micro_batch_tokens=31 cannot hold one sequence"),
        ("pretrain RECIPE phases.0.lr=fast --out out", "phases.0.lr='fast': input should be a valid number"),
        ("pretrain RECIPE model.hidden_size=65 --out out", "hidden_size=65"),
        ("pretrain quickstart --out out", "data"),
        ("pretrain RECIPE --device cuda:7 --out out", "device='cuda:7' is not on this machine"),
        ("pretrain RECIPE --device abacus --out out", "device='abacus' is no device; say auto, cpu"),
        ("pretrain RECIPE --threads 0 --out out", "num_threads=0 must be at least 1"),
        ("pretrain RECIPE --out few.txt", "few.txt cannot be written"),
        ("fill-mask nowhere [MASK]", "nowhere: no such folder, and not a hub name"),
        ("fill-mask few.txt [MASK]", "few.txt: no such folder"),
        ("fill-mask some/where [MASK]", "some/where: no such folder, and the hub did not give it"),
        ("fill-mask empty [MASK]", "empty has no config.json; it is no checkpoint folder"),
        ("fill-mask SHARDS [MASK]", "has no config.json"),
        ("fill-mask RUN nothing", "no [MASK] in 'nothing'; put one where the answer goes"),
        ("fill-mask RUN LONG", "tokens, the model 64 positions; shorten it"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_one_line(bad, chain, command, message):
    if "cuda:7" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    places = {"TOKENIZER": chain.tokenizer, "SHARDS": chain.shards, "RECIPE": chain.recipe, "RUN": chain.run,
              "LONG": "[MASK] " + "x " * 99}  # fmt: skip
    before = everything_in(bad)
    assert message in refusal(*(places.get(word, word) for word in command.split()))
    assert everything_in(bad) == before


def test_shards_without_held_out_text_are_refused_before_anything_is_written(bad, chain):
    build = ["--tokenizer", chain.tokenizer, "--documents", "line", "--heldout", "0"]
    assert run("data", "build", chain.corpus, *build, "--out", "all").status == 0
    assert "heldout" in refusal("pretrain", chain.recipe, "data.path=all", "--out", "out", *HERE)
    assert not (bad / "out").exists()


def test_a_folder_named_by_a_number_is_a_path(bad, chain):
    shutil.copytree(chain.shards, bad / "2024")
    found = run("pretrain", chain.recipe, "data.path=2024", "loop.tokens=256", "--out", "out", *HERE)
    assert found.status == 0, found.err


def test_a_tokenizer_is_not_written_over(bad, chain):
    command = [
        "tokenizer",
        "train",
        chain.corpus,
        "--vocab-size",
        "320",
        "--documents",
        "line",
        "--out",
        chain.tokenizer,
    ]
    assert "already holds a tokenizer.json; choose another --out or delete it" in refusal(*command)


@pytest.mark.parametrize(
    "arguments", [["pretrian"], ["data", "build"], ["fill-mask", "x", "--top-k", "0"], ["--wrong"]]
)
def test_a_mistyped_command_is_exit_status_2_without_a_traceback(bad, arguments):
    found = run(*arguments)
    assert found.status == 2 and found.err and "Traceback" not in found.err + found.out


# Checkpoints that do not fit.


@pytest.fixture
def damaged(chain, tmp_path):
    """Copy the newest checkpoint with its tensors changed."""

    def change(edit):
        folder = tmp_path / "checkpoint"
        shutil.copytree(chain.said["pretrain"]["checkpoint"], folder)
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        edit(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


def set_shape(tensors):
    tensors["model.final_norm.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    "edit,message",
    [
        (lambda t: t.pop("model.layers.1.attn.Wo.weight"), "model.layers.1.attn.Wo.weight is missing; the checkpoint is"),
        (lambda t: t.pop("decoder.bias"), "decoder.bias is missing"),
        (set_shape, r"of the wrong shape (model.final_norm.weight is (3,), config.json asks for (64,))"),
        (lambda t: t.update({"model.layers.0.attn.Wqkv.bias": torch.zeros(192)}), "Wqkv.bias is unknown to this architecture"),
        (lambda t: t.update({"decoder.weight": torch.zeros(320, 64)}), "decoder.weight differs from the embedding"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith(("head.", "decoder."))], "has no MLM head, so it cannot fill"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(damaged, edit, message):
    assert message in refusal("fill-mask", damaged(edit), "The [MASK] sat.")


def test_unknown_tensors_are_left_out_on_request(damaged):
    folder = damaged(lambda t: t.update({"model.layers.0.attn.Wqkv.bias": torch.zeros(192)}))
    assert run("fill-mask", folder, "The [MASK] sat.", "--ignore-unexpected").status == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("contents", [b"", b"\0\1 nonsense", None])
def test_a_damaged_file_of_a_checkpoint_is_named(damaged, name, contents):
    folder = damaged(lambda _: None)
    path = folder / name
    if contents is None:
        path.unlink()
    else:
        path.write_bytes(contents)
    assert name in refusal("fill-mask", folder, "The [MASK] sat.")


# A disk that is full.


def newest(out):
    return max(out.glob("*-????????"), key=lambda path: path.name)


def assert_as_if_nothing_had_been(out, chain):
    found, expected = (
        [(r["kind"], r["step"], r["loss"]) for r in read_metrics(folder) if "loss" in r] for folder in (out, chain.run)
    )
    assert found == expected
    ours, theirs = (safetensors.torch.load_file(newest(folder) / "model.safetensors") for folder in (out, chain.run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(whole, nth, error):
    """A function that fails at its nth call, as a full disk makes it."""
    calls = iter(range(1, 10**6))
    return lambda *args, **kwargs: error() if next(calls) == nth else whole(*args, **kwargs)


@pytest.mark.parametrize(
    "owner,name,nth,error",
    [
        (safetensors.torch, "save_file", 3, no_space),
        (FileSystemWriter, "_write_data", 2, no_space),
    ],
)
def test_a_disk_that_fills_up_while_saving_costs_only_what_came_after_the_last_checkpoint(
    bad, chain, monkeypatch, owner, name, nth, error
):
    command = ["pretrain", chain.recipe, "--out", "out", *HERE]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing(getattr(owner, name), nth, error))
        found = run(*command)
    assert found.status == 2 and "Traceback" not in found.err
    last = found.err.splitlines()[-1]
    assert last.startswith("modernbert: out/stable-00000006 could not be saved (")
    assert "free some space or choose another place. What was saved before is untouched" in last
    assert sorted(path.name for path in Path("out").glob("*-????????")) == ["stable-00000000", "stable-00000003"]
    assert [path.name for path in Path("out").glob(".*")] == [".lock"]
    assert run("fill-mask", "out", "The [MASK] sat.").status == 0

    again = run(*command)
    assert again.status == 0 and "going on with out behind step 3" in again.err
    assert_as_if_nothing_had_been(Path("out"), chain)


@pytest.mark.parametrize(
    "owner,name",
    [(log_module, "sync"), (Figure, "savefig"), (checkpoint_module, "write_whole")],
    ids=["metrics", "curve", "run.json"],
)
def test_a_disk_that_fills_up_elsewhere_is_one_line_too(bad, chain, monkeypatch, owner, name):
    command = ["pretrain", chain.recipe, "--out", "out", *HERE]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing(getattr(owner, name), 2, no_space))
        found = run(*command)
    if owner is Figure:  # a picture is no reason to end a run whose checkpoint is whole
        assert found.status == 0 and "cannot be written" in found.err
    else:
        assert found.status == 2
    assert run(*command).status == 0
    assert_as_if_nothing_had_been(Path("out"), chain)


def test_a_real_limit_on_the_size_of_files_is_met_in_the_same_way(bad, chain):
    # The averages of the optimizer are twice the weights, and at step 0 there are none yet.
    weights = (newest(chain.run) / "model.safetensors").stat().st_size
    command = [sys.executable, "-m", "modernbert", "pretrain", chain.recipe, "--out", "out", *HERE]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(weights * 1.5), resource.RLIM_INFINITY))

    found = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "out/stable-00000003 could not be saved" in found.stderr.splitlines()[-1]
    assert [path.name for path in Path("out").glob("*-????????")] == ["stable-00000000"]
    assert run(*command[3:]).status == 0
    assert_as_if_nothing_had_been(Path("out"), chain)


def test_the_installed_command_and_the_module_are_one(chain):
    found = subprocess.run([sys.executable, "-m", "modernbert", "recipes"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout == run("recipes").out


# --- planned, tried, stopped, edited


def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(bad, chain):
    before = everything_in(bad)
    found = run("pretrain", chain.recipe, "--dry-run", "--out", "out", *HERE)
    assert found.status == 0 and "tokens_per_step" in found.out and "full step" in found.out
    assert result("pretrain", chain.recipe, "--dry-run", *HERE)["phases"][0]["steps"] > 0
    assert everything_in(bad) == before


def test_a_time_limit_ends_with_status_75_and_the_same_command_goes_on(bad, chain):
    command = ["pretrain", chain.recipe, "--out", "out", *HERE]
    stopped = run(*command, "--time-limit", "0.00001")
    assert stopped.status == 75 and "stopped (time limit) behind" in stopped.err and "Traceback" not in stopped.err
    assert run(*command).status == 0
    assert tiny_run.losses(Path("out")) == tiny_run.losses(chain.run)


def test_an_edited_recipe_is_refused_by_name_and_goes_on_if_that_is_meant(bad, chain):
    command = ["pretrain", chain.recipe, "--out", "out", *HERE]
    assert run(*command, "--time-limit", "0.00001").status == 75
    assert "(now 0.0001); go on with the same settings, say --allow-change" in refusal(*command, "phases.0.lr=1e-4")
    assert run(*command, "phases.0.lr=1e-4", "--allow-change").status == 0


@pytest.mark.parametrize(
    "settings,message",
    [
        (["scale_to=nonsense"], "scale_to='nonsense' is no number of tokens"),
        (["phases.0.mixture.wiki=1"], "the mixture names 'wiki', and the data's sources are text"),
        (["loop.tokens=10"], "tokens are less than one batch"),
        (["phases.0.checkpoint=nowhere"], "nowhere: no such folder"),
        (["data.sources.more=x"], "give either path=SHARDS or sources.NAME=SHARDS"),
        (["loop.trackers=[\"email\"]"], "loop.trackers.0='email'"),
    ],
)  # fmt: skip
def test_a_recipe_that_contradicts_itself_is_refused_before_anything_is_written(bad, chain, settings, message):
    assert message in refusal("pretrain", chain.recipe, *settings, "--out", "out", *HERE)
    assert not Path("out").exists()
