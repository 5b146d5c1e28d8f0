"""What a result says of the checkout it came from."""

import subprocess

import modernbert
from modernbert.evaluate.machine import described_commit


def test_a_package_installed_inside_somebody_elses_checkout_claims_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    for place, has_commit in ((tmp_path / "venv" / "modernbert", False), (tmp_path / "modernbert", True)):
        place.mkdir(parents=True)
        monkeypatch.setattr(modernbert, "__file__", str(place / "__init__.py"))
        assert (described_commit() is not None) == has_commit
