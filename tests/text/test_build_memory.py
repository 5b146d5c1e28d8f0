"""A build stays within the memory it states, with the limit set by the operating system."""

import json
import random
import subprocess
import sys

import pytest

from modernbert.text.clean import Seen
from modernbert.text.tokenizer import save_tokenizer

BOUND = 16 * 2**20

# A small build first, so that what Python, its libraries and the tokenizer take is not counted.
PROGRAM = """
import resource, sys
from modernbert.text import Filters, build_shards, load_tokenizer

def build(name, memory):
    return build_shards(
        f"{folder}/{name}.jsonl", tokenizer=tokenizer, out=f"{folder}/out-{name}-{memory}-{workers}-{near}",
        memory_bytes=memory, num_workers=workers, filters=Filters(near_duplicates=near or None),
    )

if __name__ == "__main__":
    folder, memory, bound, workers, near = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
    tokenizer = load_tokenizer(folder)
    build("small", memory)
    with open("/proc/self/status") as status:
        base = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (base + bound, base + bound))
    print(build("large", memory)["splits"]["train"]["tokens"])
"""


def write_texts(path, num_bytes, corpus, longest):
    draw, number, written = random.Random(0), 0, 0
    with path.open("w") as file:
        while written < num_bytes:
            text = f"{number} " + " ".join(draw.choices(corpus, k=40))
            if number == 100:
                text = text * (longest // len(text))
            written += file.write(json.dumps({"text": text}) + "\n")
            number += 1


def run(folder, memory, bound, workers=1, near=0.0):
    (folder / "build.py").write_text(PROGRAM)
    command = [sys.executable, *map(str, (folder / "build.py", folder, memory, bound, workers, near))]
    return subprocess.run(command, capture_output=True, text=True, timeout=1000)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_input_of_ten_times_the_memory_builds_within_it(tmp_path, tokenizer, corpus):
    save_tokenizer(tokenizer, tmp_path, model_max_length=128)
    write_texts(tmp_path / "small.jsonl", 2**20, corpus, longest=2**19)
    write_texts(tmp_path / "large.jsonl", 10 * BOUND, corpus, longest=2**20)
    done = run(tmp_path, BOUND, BOUND)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 10 * BOUND / 8
    # The limit is a limit: a build that is told it may take more, does, and dies of it.
    died = run(tmp_path, 64 * BOUND, BOUND)
    assert died.returncode != 0 and "emory" in died.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
@pytest.mark.parametrize(("workers", "near"), [(1, 0.8), (2, 0.0)])
def test_near_duplicates_and_workers_build_within_the_memory_too(tmp_path, tokenizer, corpus, workers, near):
    save_tokenizer(tokenizer, tmp_path, model_max_length=128)
    write_texts(tmp_path / "small.jsonl", 2**20, corpus, longest=2**19)
    write_texts(tmp_path / "large.jsonl", 2 * BOUND, corpus, longest=2**19)
    done = run(tmp_path, BOUND, BOUND, workers, near)  # a limit for each process
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 2 * BOUND / 8


def test_the_table_of_digests_goes_to_disk_and_forgets_nothing(tmp_path):
    seen = Seen(tmp_path, cache_bytes=2**16)
    digests = [random.Random(number).randbytes(16) for number in range(20_000)]
    assert all(seen.is_new(digest) for digest in digests)
    assert not any(seen.is_new(digest) for digest in digests)
    assert list(tmp_path.iterdir()) == []  # a file without a name: nothing is left where the process is killed
