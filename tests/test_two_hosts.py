"""The two-host script as users start it, on two hosts made of network namespaces joined by a cable."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from tiny_run import build_tiny_shards, losses, recipe, rows

SCRIPT = Path(__file__).parents[1] / "examples" / "two_hosts.sh"
STEPS = 100
# Gradients are added in another order. Differences stay below 1e-6 for some 45 steps; then they grow tenfold every 5, here
# as in one process whose optimizer has an eps of 1.0001e-6 (docs/distributed.md).
COMPARED, NEAR = 40, 1e-5


def _why_not():
    """Why there can be no namespaces here, or None."""
    tools = [tool for tool in ("ip", "unshare", "getent", "torchrun") if not shutil.which(tool, path=_path())]
    if tools:
        return f"{', '.join(tools)} not installed"
    name = f"mb-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not to be had ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


def _path():
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


class Host:
    """A namespace with a name of its own."""

    def __init__(self, number):
        self.number = number
        self.space = f"mb{os.getpid()}-{number}"
        self.cable, self.address = f"v{os.getpid()}-{number}", f"10.77.0.{number + 1}"

    def start(self, work, words, **variables):
        """Run the script here; what it says goes to a file."""
        named = f'hostname host-{self.number}; exec "$0" "$@"'
        command = ["ip", "netns", "exec", self.space, "unshare", "--uts", "bash", "-c", named, str(SCRIPT)]
        own = {"HEAD": "10.77.0.1", "NODES": 2, "RANK": self.number, "PROCS": 1, "RESTARTS": 0} | variables
        fixed = {"PATH": _path(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        env = {**os.environ, **fixed, **{name: str(value) for name, value in own.items()}}
        self.log = work / f"host-{self.number}-{time.monotonic_ns()}.log"
        words = [*map(str, words), "--device", "cpu", "--threads", "1"]
        with self.log.open("w") as log:
            self.launcher = subprocess.Popen([*command, *words], stdout=log, stderr=log, env=env)

    def crash(self):
        """End all that runs here, at once."""
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True).stdout
        for process in found.split():
            try:
                os.kill(int(process), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def said(self):
        """The lines of ours, without PyTorch's."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("modernbert: ")]


@pytest.fixture
def hosts():
    # Here and not in a mark, so that nothing is made where the test is not run.
    if reason := _why_not():
        pytest.skip(reason)
    pair = Host(0), Host(1)
    try:
        for host in pair:
            _ip("netns", "add", host.space)
        _ip("link", "add", pair[0].cable, "type", "veth", "peer", "name", pair[1].cable)
        for host in pair:
            _ip("link", "set", host.cable, "netns", host.space)
            _ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.cable)
            _ip("-n", host.space, "link", "set", host.cable, "up")
            _ip("-n", host.space, "link", "set", "lo", "up")
        yield pair
    finally:
        for host in pair:
            host.crash()
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True)
        # A cable goes with its namespace; one that was never laid is still here.
        subprocess.run(["ip", "link", "del", pair[0].cable], capture_output=True)


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A recipe's file, four micro-batches a step, and the losses of one process."""
    folder = tmp_path_factory.mktemp("alone")
    values = recipe(build_tiny_shards(folder), phase={"tokens_per_step": 1024})
    values["loop"] |= {"tokens": STEPS * 1024, "checkpoint_tokens": 10 * 1024, "eval_tokens": 50 * 1024}
    (folder / "recipe.toml").write_text(tomli_w.dumps(values))
    words = ["pretrain", folder / "recipe.toml", "--out", folder / "run", "--device", "cpu", "--threads", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "modernbert", *map(str, words)], check=True, env=env, timeout=120)
    return folder / "recipe.toml", losses(folder / "run")[:COMPARED]


def wait_for(condition, seconds, what):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def ended(hosts):
    return all(host.launcher.poll() is not None for host in hosts)


def sessions(run):
    path = run / "run.json"
    return json.loads(path.read_text())["sessions"] if path.exists() else []


def rows_of(run, kind="train"):
    return len(rows(run, kind)) if (run / "metrics.jsonl").exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 1), ("fsdp", 1), ("ddp", 2)])
def test_two_hosts_learn_what_one_process_does(hosts, told, tmp_path, strategy, processes):
    path, alone = told
    for host in hosts:
        host.start(tmp_path, [path, f"compute.strategy={strategy}", "--out", tmp_path / "run"], PROCS=processes)
    wait_for(lambda: ended(hosts), 150, "the run's end")
    assert [host.launcher.returncode for host in hosts] == [0, 0], hosts[0].log.read_text() + hosts[1].log.read_text()
    assert losses(tmp_path / "run")[:COMPARED] == pytest.approx(alone, abs=NEAR)
    (session,) = sessions(tmp_path / "run")
    assert (session["environment"]["device_count"], session["environment"]["hosts"]) == (2 * processes, 2)


@pytest.mark.slow
def test_a_host_that_is_gone_is_named_and_the_same_command_goes_on(hosts, told, tmp_path):
    path, alone = told
    run = tmp_path / "run"
    words = [path, "compute.timeout_minutes=0.5", "--out", run]
    for host in hosts:
        host.start(tmp_path, words)
    wait_for(lambda: rows_of(run, "save") >= 2, 90, "the first steps' checkpoint")
    hosts[1].crash()
    wait_for(lambda: ended(hosts), 60, "the other's end")
    (line,) = hosts[0].said()
    assert "rank 1 on host-1" in line and "the same command goes on" in line
    for host in hosts:
        host.start(tmp_path, words)
    wait_for(lambda: ended(hosts), 150, "the run's end")
    assert sessions(run)[1]["from_step"] >= 10
    assert losses(run)[:COMPARED] == pytest.approx(alone, abs=NEAR)


@pytest.mark.slow
def test_with_restarts_one_host_goes_on_alone_until_the_other_is_back(hosts, told, tmp_path):
    path, _ = told
    run = tmp_path / "run"
    # Far more steps than it takes; nothing is waited for but the hosts.
    words = [
        path,
        "loop.tokens=10_000_000",
        "loop.checkpoint_tokens=20_480",
        "loop.eval_tokens=5_000_000",
        "--out",
        run,
    ]
    for host in hosts:
        host.start(tmp_path, words, NODES="1:2", RESTARTS=2)
    wait_for(lambda: rows_of(run) >= 25, 90, "step 25")
    hosts[1].crash()
    wait_for(lambda: len(sessions(run)) == 2 and rows_of(run) > 30, 120, "one host going on")
    hosts[1].start(tmp_path, words, NODES="1:2", RESTARTS=2)
    wait_for(lambda: len(sessions(run)) == 3, 90, "two hosts going on")
    assert [session["environment"].get("hosts", 1) for session in sessions(run)] == [2, 1, 2]
    assert sessions(run)[1]["ended"] == "SIGTERM"  # saved before the second came in
    before = sessions(run)[2]["from_step"]
    wait_for(lambda: rows(run)[-1]["step"] > before, 60, "a step of both")
    for host in hosts:
        host.launcher.send_signal(signal.SIGTERM)
    wait_for(lambda: ended(hosts), 60, "the end")
    assert sessions(run)[2]["ended"] == "SIGTERM"
