"""`modernbert data build` and `inspect` with every filter, as a person gives them."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modernbert.__main__ import app
from modernbert.errors import DataError

QUESTION = "Which of the two rivers that meet below the old town carries more water in the dry season of a common year?"


@pytest.fixture
def corpus(own_place, tiny_tokenizer):
    from modernbert.text import save_tokenizer

    draw = random.Random(0)
    words = ("river", "mountain", "the", "of", "and", "a", "in", "old", "new", "stone", "house", "walks", "under")
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(60)]
    texts += [texts[0] + " indeed", f"{texts[1]} {QUESTION}", "狐狸跳过懒狗。" * 20]
    with open("a.jsonl", "w") as file:
        file.writelines(json.dumps({"body": text, "stars": number}) + "\n" for number, text in enumerate(texts))
    with open("eval.jsonl", "w") as file:
        file.write(json.dumps({"question": QUESTION, "hint": "none"}) + "\n")
    save_tokenizer(tiny_tokenizer, "tokenizer", model_max_length=128)


def run(*arguments):
    return CliRunner().invoke(app, ["data", *arguments])


BUILD = ("build", "a.jsonl", "--tokenizer", "tokenizer", "--text-field", "body", "--heldout", "0")


def test_every_filter_can_be_given_and_is_counted(corpus):
    result = run(
        *BUILD, "--out", "out", "--near-duplicates", "0.8", "--language", "en", "--language-confidence", "0.3",
        "--decontaminate", "eval.jsonl", "--decontaminate-field", "question", "--decontaminate-field", "hint",
        "--decontaminate-words", "10", "--score-field", "stars", "--memory", "16", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = json.loads(result.stdout)
    counts = {reason: entry["count"] for reason, entry in manifest["skipped"].items()}
    assert counts == {"near-duplicate": 1, "contaminated": 1, "other language": 1}
    assert manifest["scores"] and manifest["splits"]["train"]["documents"] == 60
    assert any("1 of 2 evaluation texts are shorter than 10 words" in remark for remark in manifest["remarks"])


def test_inspect_says_where_too_few_tokens_lie_in_long_documents(corpus):
    assert run(*BUILD, "--out", "out").exit_code == 0
    remark = "Only 0.0% of the tokens lie in documents longer than 1,024 tokens (a recipe asks for 10%)"
    shown, plain = run("inspect", "out").stdout, json.loads(run("inspect", "out", "--json").stdout)
    assert remark in shown and plain["remarks"][-1].startswith(remark)
    assert "lie in documents longer" not in run("inspect", "out", "--sequence-length", "16").stdout


def test_inspect_says_of_an_older_folder_that_it_looks_unshuffled(corpus):
    with open("sorted.jsonl", "w") as file:
        for letters in ("abcd", "efgh", "ijkl"):
            for number in range(60):
                text = " ".join(random.Random(number).choices([letter * 3 for letter in letters], k=30))
                file.write(json.dumps({"body": f"{number} {text}"}) + "\n")
    assert run("build", "sorted.jsonl", *BUILD[2:], "--out", "out").exit_code == 0
    manifest = json.loads(Path("out/manifest.json").read_bytes())
    (kept,) = manifest.pop("remarks")
    Path("out/manifest.json").write_text(json.dumps(manifest))
    assert "look unshuffled" in kept and kept in json.loads(run("inspect", "out", "--json").stdout)["remarks"]


def test_a_record_without_a_score_is_refused_with_what_is_there(corpus):
    result = run(*BUILD, "--out", "out", "--score-field", "likes")
    assert isinstance(result.exception, DataError) and "likes" in str(result.exception)


@pytest.mark.parametrize("memory", ["0", "15", "-1"])
def test_too_little_memory_is_refused_in_the_megabytes_that_were_typed(corpus, memory):
    result = run(*BUILD, "--out", "out", "--memory", memory)
    assert str(result.exception) == f"memory={memory} is out of range; the least is 16 megabytes"
    assert not Path("out").exists()
