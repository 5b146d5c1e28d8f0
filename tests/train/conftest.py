"""A folder of tiny shards, made once, and PyTorch's state as it was found."""

import pytest
import tiny_run
import torch


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return tiny_run.build_tiny_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def one_thread():
    """Runs set PyTorch's thread count; what comes after a test finds it as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
