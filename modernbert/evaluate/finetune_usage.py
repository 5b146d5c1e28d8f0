"""The kind of a fine-tuned model → how it is called: on the command line, in Python, with transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

PIPELINES = {"classify": "text-classification", "pair": "text-classification", "tag": "token-classification",
              "answer": "question-answering"}  # fmt: skip
_PIPELINE = """from transformers import pipeline

answer = pipeline("{name}", model="FOLDER"{more})
print(answer({item}{call}))"""
_TRANSFORMERS_ANSWER = """from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForQuestionAnswering.from_pretrained("FOLDER")
inputs = tokenizer("Who?", "Ada wrote it.", return_tensors="pt")
logits = model(**inputs)
first, last = logits.start_logits.argmax(), logits.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))"""


class Usage(NamedTuple):
    """How a model of one kind is called: on the command line, in Python, with transformers."""

    command: str
    items: str
    transformers: str


def usage(about: Mapping[str, Any]) -> Usage:
    """How a model of this `kind` and `problem` is called."""
    kind, problem = about["kind"], about["problem"]
    if kind == "answer":
        return Usage(
            'echo \'{"question": "Who?", "context": "Ada wrote it."}\' | modernbert predict FOLDER',
            '[("Who?", "Ada wrote it.")]', _TRANSFORMERS_ANSWER,
        )  # fmt: skip
    if kind == "tag":
        return Usage('modernbert predict FOLDER "a text"', '["a text"]', _PIPELINE.format(
            name="token-classification", more=', aggregation_strategy="first"', item='"a text"', call=""))  # fmt: skip
    call = {
        "single": "",
        "multi": ', function_to_apply="sigmoid", top_k=None',
        "regression": ', function_to_apply="none"',
    }
    if kind == "pair":
        return Usage(
            'echo \'{"text": "a text", "pair": "another"}\' | modernbert predict FOLDER', '[("a text", "another")]',
            _PIPELINE.format(name="text-classification", more="", item='{"text": "a text", "text_pair": "another"}',
                             call=call[problem]),
        )  # fmt: skip
    return Usage('modernbert predict FOLDER "a text" "another"', '["a text", "another"]', _PIPELINE.format(
        name="text-classification", more="", item='"a text"', call=call[problem]))  # fmt: skip


def usage_sentences(about: Mapping[str, Any]) -> list[str]:
    """What to know before calling it."""
    sentences = []
    if length := about.get("max_length"):
        windows = f"read in windows of {length:,} tokens, of which neighbours share {about.get('stride') or 0:,}"
        cut = windows if about["kind"] in ("tag", "answer") else f"cut at {length:,} tokens"
        sentences.append(f"With `modernbert` longer texts are {cut}.")
    if about["kind"] == "answer":
        sentences.append("The lines with `transformers` take the likeliest first and last token of a passage in one window, "
                         "and no more; `modernbert` also merges windows and keeps to spans that can be.")  # fmt: skip
    if about["kind"] == "tag":
        sentences.append("The pipeline of transformers guesses where words begin, and may cut entities elsewhere, above all in "
                         "Chinese; `modernbert` says them as they were scored.")  # fmt: skip
        sentences.append("Scores are for words as the files have them. Running text is cut at every punctuation mark, so "
                         "COVID-19 is read as COVID - 19; where your words are others, give them: "
                         '`{"words": ["COVID-19", "helps"]}`.')  # fmt: skip
    return sentences
