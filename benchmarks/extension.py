"""Whether `extend` worked: two checkpoints of a run, the same masked tokens beyond the old length.

    python benchmarks/extension.py RUN/stable-00001000 RUN/extend-00002000 --shards a=SHARDS b=SHARDS --old 256 --new 2048

For each checkpoint: the loss at masked tokens of held-out documents of at least four old lengths with (a) only the last
old_length tokens visible and (b) all of the document, up to new_length; b − a with its 95 % interval by documents. Then
how much the loss inside the old length rose, paired. modernbert/evaluate/extension.py says what is masked and counted.
Met: after the extension the whole interval of b − a is at or below 0, and the loss inside rose by at most 0.02 nats.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from corpora import keep

from modernbert.evaluate.extension import ExtensionPlan, inside_change, measure, summarize
from modernbert.runtime import Runtime
from modernbert.tasks import load
from modernbert.text import Shards

MOST_INSIDE = 0.02  # nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="checkpoint folder")
    parser.add_argument("after")
    parser.add_argument(
        "--shards", nargs="+", required=True, help="shard folders, or NAME=FOLDER; held-out splits are read"
    )
    parser.add_argument("--old", type=int, required=True, help="the old sequence length")
    parser.add_argument("--new", type=int, required=True)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--stretches", type=int, default=4, help="of a document, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="append the result as a line of JSON")
    arguments = parser.parse_args()
    runtime = Runtime.detect(device=arguments.device, num_threads=arguments.threads)
    folders = dict(_named(text) for text in arguments.shards)
    shards = {name: Shards.open(folder, "heldout") for name, folder in folders.items()}
    plan = ExtensionPlan(
        old_length=arguments.old, new_length=arguments.new, num_documents=arguments.documents,
        stretches=arguments.stretches, seed=arguments.seed,
    )  # fmt: skip
    losses, reports = {}, {}
    for name in ("before", "after"):
        model = load(getattr(arguments, name), device=runtime.device)
        losses[name] = measure(model, shards, plan, runtime)
        reports[name] = summarize(losses[name], plan)
        for part, figures in (("all targets", reports[name]), ("late ones", reports[name]["late"])):
            d = figures["difference"]
            print(
                f"{name:7s} {part:12s} (a) {figures['near']:.4f}  (b) {figures['whole']:.4f}  (b) − (a) {d['mean']:+.4f} "
                f"[{d['low']:+.4f}, {d['high']:+.4f}]  {d['documents']} documents, {d['targets']:,} targets"
            )
    rise = inside_change(losses["before"], losses["after"], plan.seed)
    print(f"inside the old length: {rise['mean']:+.4f} [{rise['low']:+.4f}, {rise['high']:+.4f}] nats")
    met = {
        "far past helps": reports["after"]["difference"]["high"] <= 0,
        "inside not worse": rise["mean"] <= MOST_INSIDE,
    }
    checkpoints = {name: Path(getattr(arguments, name)).name for name in reports}
    keep({"checkpoints": checkpoints, **reports, "inside_rise": rise, "met": met}, arguments.out)


def _named(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    return (name, Path(folder)) if separator else (Path(text).name, Path(text))


if __name__ == "__main__":
    main()
