"""Pretrain on a shard folder from Python instead of the command line.

python examples/pretrain_from_python.py SHARDS RUN [key=value ...]
"""

import sys

from modernbert.runs import pretrain
from modernbert.runtime import Runtime
from modernbert.settings import override, read_recipe
from modernbert.train.loop import Hooks
from modernbert.train.recipe import PretrainRun

shards, out, *settings = sys.argv[1:]
recipe = override(read_recipe("quickstart"), [f"data.path={shards}", *settings])


def show(row: dict) -> None:
    print(row["kind"], row["step"], f"{row['loss']:.3f}")


print(pretrain(PretrainRun.parse(recipe), out, Runtime.detect(), Hooks(on_row=show, on_remark=print)))
