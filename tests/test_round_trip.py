"""Folders fine-tuned here open in transformers, and folders of its Trainer here: the same labels, scores and places.

Both read whole texts of different lengths in one padded batch, longer than the window of local attention (8 tokens).
"""

import json

import numpy as np
import pytest
import torch
from tiny_tasks import PLACES, finetuned, run_of, texts, write_jsonl

from modernbert import load
from modernbert.tasks.entities import entity_spans, repair

transformers = pytest.importorskip("transformers")

SINGLE = [{"text": text, "label": name} for text, name in texts(32)]
MULTI = [{"text": row["text"], "label": [row["label"], "long"][: 1 + (len(row["text"]) > 30)]} for row in SINGLE]
NUMBERS = [{"text": row["text"], "label": len(row["text"]) / 20} for row in SINGLE]
PAIRS = [
    {"text": one, "pair": other, "label": "same" if name == another else "other"}
    for (one, name), (other, another) in zip(texts(32, 1), texts(32, 2), strict=True)
]
TAGS = [
    {"tokens": text.split(),
     "ner_tags": [next((f"B-{n}" for n in ("sky", "town") if word in PLACES[n]), "O") for word in text.split()]}
    for text, _ in texts(32, 3)
]  # fmt: skip
QUESTIONS = [
    {"question": f"what {name}", "context": text, "answers": {"text": [word], "answer_start": [text.index(word)]}}
    for text, name in texts(32, 4)
    for word in PLACES[name]
    if word in text.split()
]
ROWS = {"single": SINGLE, "multi": MULTI, "regression": NUMBERS, "pair": PAIRS, "tag": TAGS, "answer": QUESTIONS}
FAST = ("single", "tag", "answer")
KINDS = {"single": "classify", "multi": "classify", "regression": "classify"}
CLASSES = {
    "tag": transformers.AutoModelForTokenClassification,
    "answer": transformers.AutoModelForQuestionAnswering,
}
ASKED = ["the river", "of the old house and a new letter in the quiet evening with a stone", "", "城市 light"]


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("base") / "model")


def taught(model, name, folder, rows=None):
    """Fine-tune for an epoch or two here."""
    kind = KINDS.get(name, name)
    train = write_jsonl(folder.parent / f"{folder.name}.jsonl", rows or ROWS[name])
    finetuned(run_of(model, [{"kind": kind, "train": train, "validation": train}], epochs=2), folder)
    return folder


@pytest.fixture(scope="module")
def ours(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours")
    made = {}

    def of(name):
        if name not in made:
            made[name] = taught(base, name, folder / name)
        return made[name]

    return of


def opened(folder, name):
    """Tokenizer and model as a user of transformers opens them."""
    kind = CLASSES.get(name, transformers.AutoModelForSequenceClassification)
    model = kind.from_pretrained(folder).eval()
    assert type(model).__name__ == model.config.architectures[0]
    return transformers.AutoTokenizer.from_pretrained(folder), model


@torch.no_grad()
def of_texts(folder, name, texts, pairs=None):
    """Of each text {class: probability}, or its number, by transformers' class on one padded batch."""
    tokenizer, model = opened(folder, name)
    given = (texts,) if pairs is None else (texts, pairs)
    inputs = tokenizer(*given, padding=True, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 16 and inputs["attention_mask"].sum(1).unique().numel() > 1
    logits = model(**inputs).logits
    if model.config.problem_type == "regression" or logits.shape[1] == 1:
        return logits[:, 0].tolist()
    shares = logits.sigmoid() if model.config.problem_type == "multi_label_classification" else logits.softmax(-1)
    return [dict(zip(model.config.id2label.values(), row, strict=True)) for row in shares.tolist()]


def check_texts(folder, name):
    """What `predict` says is what transformers' class says."""
    pairs = ASKED[::-1] if name == "pair" else None
    said = load(folder).predict(list(zip(ASKED, pairs, strict=True)) if pairs else ASKED)
    expected = of_texts(folder, name, ASKED, pairs)
    if name == "regression":
        assert [one["value"] for one in said] == pytest.approx(expected, abs=1e-4)
        return
    for one, shares in zip(said, expected, strict=True):
        if name == "multi":
            found = {found["label"]: found["score"] for found in one["labels"]}
            assert found == pytest.approx({label: p for label, p in shares.items() if p >= 0.5}, abs=1e-4)
        else:
            assert one["label"] == max(shares, key=shares.__getitem__)
            assert one["score"] == pytest.approx(shares[one["label"]], abs=1e-4)


LISTS = [text.split() for text in (*ASKED[:2], *ASKED[3:], "a letter")]


@torch.no_grad()
def check_words(folder):
    """Of each word the label of its first token, with `is_split_into_words`."""
    tokenizer, model = opened(folder, "tag")
    inputs = tokenizer(LISTS, is_split_into_words=True, padding=True, return_tensors="pt")
    best = model(**inputs).logits.softmax(-1).max(-1)
    kinds = set()
    for row, (words, said) in enumerate(zip(LISTS, load(folder).predict(LISTS), strict=True)):
        firsts = [inputs.word_ids(row).index(word) for word in range(len(words))]
        tags = repair([model.config.id2label[int(best.indices[row, first])] for first in firsts])  # not known to it
        assert said["tags"] == tags
        kinds.update(tags)
        shares = best.values[row, firsts].tolist()
        expected = [(label, sum(shares[i:j]) / (j - i)) for label, i, j in entity_spans(tags)]
        assert [one["label"] for one in said["entities"]] == [label for label, _ in expected]
        assert [one["score"] for one in said["entities"]] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert len(kinds) > 1, "or nothing is shown"


PASSAGES = [
    ("what water", "the old river of the town"),
    ("what sky", "a house in the quiet evening and of the new light with a letter in the old town and a child"),
    ("what town", "child"),
]


@torch.no_grad()
def check_answers(folder):
    """Of all spans of a passage the likeliest, its place, and its share among all of them and no answer."""
    tokenizer, model = opened(folder, "answer")
    here = load(folder)
    inputs = tokenizer(
        *map(list, zip(*PASSAGES, strict=True)), padding=True, return_tensors="pt", return_offsets_mapping=True
    )
    offsets = inputs.pop("offset_mapping")
    output = model(**inputs)
    for row, (said, (_, passage)) in enumerate(zip(here.predict(PASSAGES), PASSAGES, strict=True)):
        start, end = output.start_logits[row], output.end_logits[row]
        inside = [place for place, of in enumerate(inputs.sequence_ids(row)) if of == 1]
        places = [place for place in inside if passage[slice(*offsets[row, place].tolist())].strip()]  # no lone space
        spans = {
            (i, j): float(start[i] + end[j]) for i in places for j in places if i <= j < i + here.max_answer_tokens
        }
        i, j = max(spans, key=spans.__getitem__)
        first, behind = int(offsets[row, i, 0]), int(offsets[row, j, 1])
        assert said["answer"] == passage[first:behind].strip()
        assert (said["start"], said["end"]) == (behind - len(passage[first:behind].lstrip()), behind)
        shares = np.exp([*spans.values(), float(start[0] + end[0])])
        assert said["score"] == pytest.approx(np.exp(spans[i, j]) / shares.sum(), abs=1e-4)
        assert said["no_answer_score"] == pytest.approx(shares[-1] / shares.sum(), abs=1e-4)


def check(folder, name):
    if name == "tag":
        check_words(folder)
    elif name == "answer":
        check_answers(folder)
    else:
        check_texts(folder, name)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_folder_made_here_says_the_same_in_transformers(ours, name):
    check(ours(name), name)


def test_the_pipeline_of_transformers_takes_the_folder(ours):
    classify = transformers.pipeline("text-classification", model=str(ours("single")))
    for said, theirs in zip(load(ours("single")).predict(ASKED), classify(ASKED), strict=True):
        assert said["label"] == theirs["label"] and said["score"] == pytest.approx(theirs["score"], abs=1e-4)


def trained_by_transformers(base, name, folder):
    """Three steps of its Trainer, on features made as its examples make them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = ROWS[name]
    values, collate = {}, transformers.DataCollatorWithPadding(tokenizer)
    if name == "answer":
        features = [_answer_feature(tokenizer, row) for row in rows]
    elif name == "tag":
        labels = ["O", "B-sky", "B-town"]
        features = [_tag_feature(tokenizer, row, labels) for row in rows]
        collate = transformers.DataCollatorForTokenClassification(tokenizer)
    else:
        labels = sorted({one for row in rows for one in _several(row["label"])}, key=str)
        features = [_text_feature(tokenizer, row, labels, name) for row in rows]
        values["problem_type"] = {"multi": "multi_label_classification", "regression": "regression"}.get(
            name, "single_label_classification"
        )
    if name == "regression":
        values["num_labels"] = 1
    elif name != "answer":
        values |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    torch.manual_seed(0)
    model = CLASSES.get(name, transformers.AutoModelForSequenceClassification).from_pretrained(base, **values)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder.parent / "trainer"), max_steps=3, per_device_train_batch_size=8, learning_rate=5e-3,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=features, data_collator=collate)
    trainer.train()
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    return folder


def _several(label):
    return label if isinstance(label, list) else [label]


def _text_feature(tokenizer, row, labels, name):
    found = dict(tokenizer(row["text"], row.get("pair")))
    if name == "regression":
        return found | {"label": row["label"]}
    if name == "multi":
        return found | {"label": [float(label in row["label"]) for label in labels]}
    return found | {"label": labels.index(row["label"])}


def _tag_feature(tokenizer, row, labels):
    found = tokenizer(row["tokens"], is_split_into_words=True)
    words = found.word_ids()
    tags = [-100 if word is None or word in words[:place] else labels.index(row["ner_tags"][word])
            for place, word in enumerate(words)]  # fmt: skip
    return dict(found) | {"labels": tags}


def _answer_feature(tokenizer, row):
    found = tokenizer(row["question"], row["context"])
    start = row["answers"]["answer_start"][0]
    last = start + len(row["answers"]["text"][0]) - 1
    places = {"start_positions": found.char_to_token(0, start, 1), "end_positions": found.char_to_token(0, last, 1)}
    return dict(found) | places


@pytest.fixture(scope="module")
def theirs(base, tmp_path_factory):
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("theirs")
    made = {}

    def of(name):
        if name not in made:
            made[name] = trained_by_transformers(base, name, folder / name)
        return made[name]

    return of


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in ROWS if name not in FAST)]
)
def test_a_folder_of_the_trainer_says_the_same_here(theirs, name):
    check(theirs(name), name)


@pytest.mark.parametrize(
    "name", ["tag", *(pytest.param(name, marks=pytest.mark.slow) for name in ROWS if name != "tag")]
)
def test_a_folder_of_the_trainer_is_taught_further_here(theirs, name, tmp_path):
    folder = taught(theirs(name), name, tmp_path / "further")
    check(folder, name)
    about = json.loads((folder / "config.json").read_text())
    assert about["architectures"] == json.loads((theirs(name) / "config.json").read_text())["architectures"]
