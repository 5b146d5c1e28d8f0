"""A folder of tiny shards, made once."""

import pytest
import tiny_run


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return tiny_run.build_tiny_shards(tmp_path_factory.mktemp("data"))
