"""Scores of `modernbert evaluate` on retrieval suites → a table, with what fusion adds to the better of its parts.

    python benchmarks/retrieval_tables.py scores.jsonl --models student minilm --suite code

Differences are paired by query, with 95 % intervals, within one protocol: the newest of each task and model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modernbert.evaluate.retrieval import BM25, METRICS
from modernbert.evaluate.score import Score, ScoreFile
from modernbert.evaluate.seeds import paired


def table(scores: list[Score], models: list[str], metric: str) -> list[str]:
    """A Markdown table of one metric: a row a task and model."""
    lines = [f"| {metric} | model | BM25 | fused | fused − the better part |", "|---|--:|--:|--:|--:|"]
    for task in dict.fromkeys(score.task for score in scores):
        for model in models:
            known = [score for score in scores if (score.task, score.metric) == (task, metric)]
            newest = next((score for score in reversed(known) if score.model == model), None)
            if newest is None:
                continue
            same = {score.model: score for score in known if score.protocol_key == newest.protocol_key}
            ours, words, both = (same[name] for name in (model, BM25, f"{model} + {BM25}"))
            better = max(ours, words, key=lambda score: score.value)
            gain = paired([100 * value for value in both.values], [100 * value for value in better.values])
            lines.append(
                f"| {task} · {model} | {100 * ours.value:.1f} | {100 * words.value:.1f} | {100 * both.value:.1f} "
                f"| {gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--suite", default="retrieval")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), choices=list(METRICS))
    arguments = parser.parse_args()
    scores = [score for score in ScoreFile(arguments.scores) if score.suite == arguments.suite]
    if unknown := [model for model in arguments.models if model not in {score.model for score in scores}]:
        parser.error(f"{arguments.scores} has no scores of {unknown[0]} in suite {arguments.suite}")
    for metric in arguments.metrics:
        print("\n".join(table(scores, arguments.models, metric)), end="\n\n")


if __name__ == "__main__":
    main()
