"""Pretrain on a shard folder from Python instead of the command line.

python examples/pretrain_from_python.py SHARDS RUN [key=value ...]
"""

import sys

from modernbert.pretraining import pretrain
from modernbert.runtime import Runtime
from modernbert.train.loop import Hooks
from modernbert.train.scale import read_run

shards, out, *settings = sys.argv[1:]
run = read_run("quickstart", [f"data.path={shards}", *settings])


def show(row: dict) -> None:
    if "loss" in row:  # steps and evaluations; there are rows on saves, too
        print(row["kind"], row["step"], f"{row['loss']:.3f}")


print(pretrain(run, out, Runtime.detect(), Hooks(on_row=show, on_remark=print)))
