"""Fine-tuning here and by a `transformers` Trainer: the metric over seeds, paired, and real tokens a second.

    python benchmarks/finetune.py --model CHECKPOINT --data DATA --out results/finetune.jsonl

Both begin with the same weights (encoder and freshly drawn head, by seed) and see the same tokenised examples, the same 16 in
each step, with the same StableAdamW and the same rate in each step; no dropout, which could not be drawn alike. So what is
left between them is how they compute, and seeds draw heads and orders for both. Ours packs; theirs pads each batch to its
longest row (`DataCollatorWithPadding`, SDPA) and clips nothing. Behind the last step, with no choosing between checkpoints,
both sets of weights are scored by one function on the same test examples. `floor` is what the commonest answer would score.

Speed: real tokens over the seconds of training steps, ours and theirs in turns within a seed, the order reversed with each
seed, behind a short round that does not count; `padded_to_real` is counted in their batches, and the target is 0.95 of it.
glibc keeps freed memory for both alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optimi
import torch
import transformers

from modernbert import PRESETS
from modernbert.batch import Feature
from modernbert.disk import write_whole
from modernbert.evaluate.benchmarks import BENCHMARKS, Benchmark
from modernbert.evaluate.machine import environment, tune_malloc
from modernbert.evaluate.metrics import score_all
from modernbert.evaluate.seeds import paired, summary
from modernbert.finetuning import Prepared, prepare, train_in_memory
from modernbert.model import hub
from modernbert.runtime import Runtime
from modernbert.taskdata import TaskData, labels_of
from modernbert.tasks import MaskedLM, load
from modernbert.text.examples import Example
from modernbert.train.finetune import FinetuneRun
from modernbert.train.schedule import learning_rate

TASKS = ("sst2_sentences", "ag_news", "banking77", "ner_wnut17", "ner_ncbi_disease", "qa_squad11_part")
_AUTO = {
    "classify": "AutoModelForSequenceClassification", "pair": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification", "answer": "AutoModelForQuestionAnswering",
}  # fmt: skip


def prepared_for(
    benchmark: Benchmark, seed: int, arguments: argparse.Namespace, base: Any, runtime: Runtime
) -> Prepared:
    files = {"train": benchmark.train, "test": benchmark.test}  # nothing is chosen on validation: it is not read
    task = {
        "kind": benchmark.kind, "columns": benchmark.columns, "max_length": arguments.max_length,
        "max_examples": arguments.max_examples,
        **{part: str(Path(arguments.data, file)) for part, file in files.items() if file is not None},
    }  # fmt: skip
    run = FinetuneRun.parse({
        "model": arguments.model, "tasks": [task], "seed": seed, "epochs": arguments.epochs, "lr": arguments.lr,
        "evaluations": 1, "batch_size": arguments.batch_size, "head_dropout": 0.0,
    })  # fmt: skip
    return prepare(run, runtime, base)


class Rows(torch.utils.data.Dataset):
    """Our features as a Trainer takes them."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        feature = self.features[index]
        row: dict[str, Any] = {"input_ids": feature.ids_T.tolist(), "attention_mask": [1] * len(feature.ids_T)}
        if feature.labels_T is not None:
            return row | {"labels": feature.labels_T.tolist()}
        if np.ndim(feature.target) == 1 and len(feature.target) == 2:
            return row | {"start_positions": int(feature.target[0]), "end_positions": int(feature.target[1])}
        return row | {"labels": feature.target}


class Clock(transformers.TrainerCallback):
    """Seconds from the beginning of training to the end of its last step."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.began_at = self.ended_at = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ended_at = time.perf_counter()


def steps_of(prepared: Prepared) -> tuple[list[list[int]], list[float]]:
    """Which features our loop takes in each step, and each step's share of the peak rate."""
    run, batches = prepared.run, prepared.batches
    budget = batches.tokens_of(run.epochs)
    (phase,) = run.plan(budget).phases
    steps: list[list[int]] = [[]]
    rates, tokens = [], 0
    for _, state in batches.share():
        steps[-1] += [batches.feature_at(0, int(position) >> 8) for position in state.positions]
        tokens += state.num_tokens
        if state.ends_step:
            rates.append(
                learning_rate(
                    min(tokens, budget), peak=1.0, total=budget, warmup=phase.warmup_tokens, decay=phase.decay_tokens,
                    decay_to=phase.decay_to, shape=phase.decay_shape,
                )
            )  # fmt: skip
            if tokens >= budget:
                return steps, rates
            steps.append([])
    raise AssertionError("the stream has no end")


class InOurOrder(transformers.Trainer):
    """A Trainer that is told which examples each step has."""

    steps: Sequence[Sequence[int]] = ()

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Without a sampler of its own."""
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.steps, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)


def theirs(prepared: Prepared, benchmark: Benchmark, folder: Path) -> tuple[dict[str, torch.Tensor], float, int, int]:
    """A Trainer's weights, its seconds, and the real tokens and slots of its batches."""
    run, (head,) = prepared.run, prepared.heads.values()
    model = getattr(transformers, _AUTO[str(benchmark.kind)]).from_pretrained(folder, attn_implementation="sdpa")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pad = (
        transformers.DataCollatorForTokenClassification(tokenizer) if benchmark.kind == "tag"
        else transformers.DataCollatorWithPadding(tokenizer)
    )  # fmt: skip
    counted = {"tokens": 0, "slots": 0}

    def collate(rows: list[dict[str, Any]]) -> Any:
        batch = pad(rows)
        counted["tokens"] += int(batch["attention_mask"].sum())
        counted["slots"] += batch["attention_mask"].numel()
        return batch

    rows = Rows(prepared.batches.features[next(iter(prepared.heads))])
    steps, rates = steps_of(prepared)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": run.optim.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = optimi.StableAdamW(
        groups, lr=run.lr, betas=run.optim.betas, eps=run.optim.eps, decouple_lr=True, max_lr=run.lr
    )
    clock = Clock()
    shares = [*rates, 0.0]  # a scheduler looks one step further than there is
    trainer = InOurOrder(
        model=model, train_dataset=rows, data_collator=collate, callbacks=[clock],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, shares.__getitem__)),
        args=transformers.TrainingArguments(
            output_dir=str(folder / "trainer"), per_device_train_batch_size=run.batch_size, num_train_epochs=1,
            seed=run.seed, save_strategy="no", report_to=[], logging_steps=10**9, max_grad_norm=0.0, use_cpu=True,
            disable_tqdm=True, remove_unused_columns=False, dataloader_num_workers=0,
        ),
    )  # fmt: skip
    trainer.steps = steps
    trainer.train()
    assert trainer.state.global_step == len(steps)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name in head.state_dict()}
    return weights, clock.ended_at - clock.began_at, counted["tokens"], counted["slots"]


def floor_of(data: TaskData, test: Sequence[Example]) -> float:
    """The score of always giving the commonest label; nothing of tags and answers is right by that."""
    if data.problem != "single":
        return 0.0
    return Counter(labels_of(example)[0] for example in test).most_common(1)[0][1] / len(test)


def measure(
    benchmark: Benchmark, seed: int, arguments: argparse.Namespace, base: Any, runtime: Runtime
) -> dict[str, Any]:
    """One seed of one task: both trained, both scored."""
    prepared = prepared_for(benchmark, seed, arguments, base, runtime)
    ((_, data),) = prepared.tasks.items()
    (head,) = prepared.heads.values()
    row: dict[str, Any] = {"task": benchmark.name, "seed": seed, "epochs": prepared.run.epochs, "lr": prepared.run.lr,
                           "examples": len(data.train)}  # fmt: skip
    test = data.test[: arguments.max_test] if data.test else data.validation
    row["floor"] = floor_of(data, test)

    def scored() -> dict[str, float]:
        return score_all(data.problem, data.labels, test, head.decide(test))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        head.write(folder)
        begun = hub.read_tensors(folder)
        for side in ("ours", "theirs") if seed % 2 == 0 else ("theirs", "ours"):
            gc.collect()
            if side == "ours":
                head.load_state_dict(begun)
                told = train_in_memory(prepared, runtime)
                row["ours"] = {"tokens_per_second": told["tokens"] / told["seconds"], "steps": told["steps"]}
            else:
                weights, seconds, tokens, slots = theirs(prepared, benchmark, folder)
                head.load_state_dict(weights)
                row["theirs"] = {"tokens_per_second": tokens / seconds, "padded_to_real": slots / tokens}
            row[side] |= scored()
    row["ratio"] = row["ours"]["tokens_per_second"] / row["theirs"]["tokens_per_second"]
    return row


def result_of(benchmark: Benchmark, rows: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """All seeds of a task: means, the paired difference, the ratio and its target."""
    ours, theirs_ = ([100 * row[side][benchmark.metric] for row in rows] for side in ("ours", "theirs"))
    padded = statistics.fmean(row["theirs"]["padded_to_real"] for row in rows)
    ratios = [row["ratio"] for row in rows]
    difference = paired(ours, theirs_)
    return {
        "task": benchmark.name, "metric": benchmark.metric, "model": arguments.shape or Path(arguments.model).name,
        "ours": dataclasses.asdict(summary(ours)), "theirs": dataclasses.asdict(summary(theirs_)),
        "difference": {**dataclasses.asdict(difference), "includes_0": difference.includes(0.0), "width": difference.width},
        "floor": 100 * statistics.fmean(row["floor"] for row in rows), "padded_to_real": padded, "target": 0.95 * padded,
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "met": statistics.median(ratios) >= 0.95 * padded, "rows": rows,
    }  # fmt: skip


def main() -> None:
    tune_malloc()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a pretrained checkpoint or run folder")
    parser.add_argument(
        "--shape", choices=sorted(PRESETS), help="random weights of a shape instead, with MODEL's tokenizer"
    )
    parser.add_argument("--data", required=True, help="the folder of data sets")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--max-examples", type=int, help="of the training part, drawn by seed")
    parser.add_argument("--max-test", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    runtime = Runtime.detect(device="cpu", num_threads=arguments.threads)
    base = load(arguments.model)
    if arguments.shape:
        config = dataclasses.replace(
            PRESETS[arguments.shape], vocab_size=base.config.vocab_size, pad_token_id=base.config.pad_token_id
        )
        base = MaskedLM(config, base.tokenizer).draw(0)
    known = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    asked = {k: v for k, v in vars(arguments).items() if k not in ("out", "tasks", "data", "model")}
    tasks = [next(b for b in BENCHMARKS if b.name == name) for name in arguments.tasks.split(",")]
    few = argparse.Namespace(**vars(arguments) | {"max_examples": 2 * arguments.batch_size})
    measure(tasks[0], 0, few, base, runtime)  # not kept: behind it memory is there and kernels are chosen
    for benchmark in tasks:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(measure(benchmark, seed, arguments, base, runtime))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "rows"}), flush=True)
        found = {**result_of(benchmark, rows, arguments), "settings": asked, "environment": environment(runtime)}
        known.append(found)
        write_whole(arguments.out, "".join(json.dumps(line) + "\n" for line in known))


if __name__ == "__main__":
    main()
