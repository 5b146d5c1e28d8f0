"""What a result says of the checkout it came from."""

import subprocess

import torch

import modernbert
from modernbert.evaluate import machine
from modernbert.evaluate.machine import cgroup_limits, described_commit


def test_a_package_installed_inside_somebody_elses_checkout_claims_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    for place, has_commit in ((tmp_path / "venv" / "modernbert", False), (tmp_path / "modernbert", True)):
        place.mkdir(parents=True)
        monkeypatch.setattr(modernbert, "__file__", str(place / "__init__.py"))
        assert (described_commit() is not None) == has_commit


def test_memory_is_what_the_control_groups_around_a_process_leave_it(tmp_path, monkeypatch):
    inner = tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("3000000\n")
    (tmp_path / "own").write_text("0::/slice/job\n")
    assert [*cgroup_limits(tmp_path / "own", tmp_path)] == [3_000_000]
    older = tmp_path / "memory" / "job"
    older.mkdir(parents=True)
    (older / "memory.limit_in_bytes").write_text("2000000")
    (tmp_path / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/job\n")
    assert [*cgroup_limits(tmp_path / "own", tmp_path)] == [2_000_000]
    assert [*cgroup_limits(tmp_path / "absent", tmp_path)] == []
    monkeypatch.setattr(machine, "cgroup_limits", lambda: [5000])
    assert machine.usable_memory_bytes(torch.device("cpu")) == 5000
