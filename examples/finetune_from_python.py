"""Fine-tune a classifier from Python instead of the command line, and ask it.

python examples/finetune_from_python.py ENCODER TRAIN OUT [key=value ...]
"""

import sys
from pathlib import Path

import modernbert
from modernbert.finetuning import finetune
from modernbert.runtime import Runtime
from modernbert.settings import override
from modernbert.train.finetune import FinetuneRun
from modernbert.train.loop import Hooks

encoder, train, out, *settings = sys.argv[1:]
values = {"model": encoder, "tasks": [{"kind": "classify", "train": train}]}  # text and label; a tenth for validation
run = FinetuneRun.parse(override(values, settings))


def show(row: dict) -> None:
    if row["kind"] == "eval":  # one an epoch
        print(f"step {row['step']}: accuracy {row['accuracy']:.3f}{', best so far' if row['is_best'] else ''}")


result = finetune(run, Path(out), Runtime.detect(), Hooks(on_row=show, on_remark=print))
print(result["tasks"]["classify"]["validation"])

model = modernbert.load(out)
for answer in model.predict(["a text", "another"]):
    print(f"{answer['text']!r}: {answer['label']} ({answer['score']:.0%})")
