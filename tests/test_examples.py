"""The launch scripts, with commands in place of torchrun and Slurm that say what they were told; and fine-tuning."""

import json
import os
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from tiny_tasks import classify_files

from modernbert.train.finetune import FinetuneRun

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".sh", ".sbatch"))

# Says its words and variables.
TORCHRUN = f"""#!{sys.executable}
import json, os, sys
names = ("GLOO_SOCKET_IFNAME", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
print(json.dumps([sys.argv[1:], {{name: os.environ.get(name) for name in names}}]))
"""
# A step of one node, which ends some time after SIGTERM, with what torchrun makes of every end.
SRUN = """#!/usr/bin/env bash
echo "srun: $HEAD $NODES $PORT $RESTARTS: $*" >> "$SAID"
echo $$ > "$SAID.step"
[[ $RUN_ENDS != at_once ]] || exit "$STATUS"
trap 'echo saved >> "$SAID"; exit 1' TERM
while :; do sleep 0.05; done
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel: $*" >> "$SAID"
sleep 0.2
kill -TERM "$(cat "$SAID.step")"
"""
SCONTROL = """#!/usr/bin/env bash
[[ $1 == show ]] && printf 'node-3\\nnode-4\\n' && exit
echo "scontrol: $*" >> "$SAID"
"""


def stand_in(folder, name, text):
    (folder / name).write_text(text)
    (folder / name).chmod(stat.S_IRWXU)


def needs(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@needs("bash")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_say_how_they_are_called(script):
    subprocess.run(["bash", "-n", script], check=True, timeout=10)
    assert f"examples/{script.name} " in script.read_text()


def launched(tmp_path, *words, **variables):
    """What `two_hosts.sh` does with these words and variables."""
    stand_in(tmp_path, "torchrun", TORCHRUN)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GLOO", "TORCH"))}
    env = {**kept, "PATH": f"{tmp_path}:{os.environ['PATH']}", **{n: str(v) for n, v in variables.items()}}
    return subprocess.run([EXAMPLES / "two_hosts.sh", *words], env=env, capture_output=True, text=True, timeout=20)


@needs("bash", "ip", "getent")
@pytest.mark.parametrize(("rank", "restarts"), [(0, 0), (1, 3)])
def test_torchrun_understands_what_a_host_tells_it(rank, restarts, tmp_path):
    from torch.distributed.run import config_from_args, get_args_parser

    done = launched(
        tmp_path, "base", "--out", "a b", HEAD="127.0.0.1", NODES="1:2", RANK=rank, RESTARTS=restarts, PROCS=4
    )
    assert done.returncode == 0, done.stderr
    words, variables = json.loads(done.stdout)
    arguments = get_args_parser().parse_args(words)
    config, _, command = config_from_args(arguments)
    assert command[-5:] == ["modernbert", "pretrain", "base", "--out", "a b"] and arguments.module
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (1, 2, 4, restarts)
    assert (config.rdzv_backend, config.rdzv_endpoint, config.local_addr) == ("c10d", "127.0.0.1:29500", "127.0.0.1")
    assert config.rdzv_configs["is_host"] == str(int(rank == 0))
    assert variables["GLOO_SOCKET_IFNAME"] == "lo" and variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "300"
    assert variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == ("1" if restarts else None)


@needs("bash", "ip", "getent")
@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"NODES": 2, "RANK": 0}, "HEAD: is not set"),
        ({"HEAD": "127.0.0.1", "NODES": 2}, "RANK: is not set"),
        ({"HEAD": "localhost", "NODES": 2, "RANK": 0}, "HEAD=localhost is 127.0.0.1 here"),
        ({"HEAD": "127.0.0.1", "NODES": 2, "RANK": 0, "ADDRESS": "127.0.0.2"}, "RANK=0 is for HEAD=127.0.0.1"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(variables, what, tmp_path):
    done = launched(tmp_path, "base", **variables)
    assert done.returncode != 0 and what in done.stderr and done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.fixture
def slurm(tmp_path):
    """Submits, and says what was said; `signalled` has the time limit come near."""
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        stand_in(tmp_path, name, text)
    said = tmp_path / "said"

    def submit(*, run_ends, status=0, signalled=False):
        env = {
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(said), "RUN_ENDS": run_ends,
            "STATUS": str(status), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[3-4]", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_SUBMIT_DIR": str(EXAMPLES.parent),
        }  # fmt: skip
        job = subprocess.Popen(["bash", EXAMPLES / "slurm.sbatch", "base", "--out", "run"], env=env)
        try:
            if signalled:
                until = time.monotonic() + 10
                while not said.with_name("said.step").exists():
                    assert time.monotonic() < until, "the step never began"
                    time.sleep(0.02)
                time.sleep(0.2)  # for the trap of what stands for the run
                job.send_signal(signal.SIGUSR1)
            return job.wait(timeout=20), said.read_text().splitlines()
        finally:
            job.kill()

    return submit


@needs("bash")
def test_a_job_near_its_limit_is_saved_and_then_queued_again(slurm):
    status, said = slurm(run_ends="never", signalled=True)
    assert said[0].startswith("srun: node-3 2 20007 0: ") and said[0].endswith("two_hosts.sh base --out run")
    assert said[1:] == ["scancel: --signal=TERM 7", "saved", "scontrol: requeue 7"]
    assert status == 1


@needs("bash")
@pytest.mark.parametrize("status", [0, 1])
def test_a_job_that_ends_by_itself_is_not_queued_again(slurm, status):
    ended, said = slurm(run_ends="at_once", status=status)
    assert ended == status and len(said) == 1


def test_the_example_of_fine_tuning_learns_and_answers(tiny_model, tmp_path, capsys, monkeypatch):
    base = tiny_model.save(tmp_path / "base")
    train = classify_files(tmp_path)["train"]
    quick = ("epochs=4", "lr=5e-3", "batch_size=8", "head_dropout=0")
    script = EXAMPLES / "finetune_from_python.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(base), train, str(tmp_path / "out"), *quick])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 4 and "best so far" in "".join(lines)
    assert [line.split(": ")[0] for line in lines[-2:]] == ["'a text'", "'another'"]
    assert (tmp_path / "out" / "README.md").exists()


def test_the_example_of_several_tasks_is_one():
    values = tomllib.loads((EXAMPLES / "several_tasks.toml").read_text())
    run = FinetuneRun.parse({**values, "model": "MODEL"})
    assert run.names() == ["sentiment", "entities"]
    assert [task.weight for task in run.tasks] == [1.0, 0.5]
