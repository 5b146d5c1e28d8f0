"""`finetune`, `predict`, `evaluate` and `compare` as a person gives them: what is printed, refused and left behind."""

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tomli_w
from test_cli import HERE, everything_in, refusal, result, run
from tiny_tasks import PLACES, classify_files, tag_files, texts, write_jsonl

from modernbert import MaskedLM, taskdata

pytestmark = pytest.mark.usefixtures("own_place")

QUICK = [*HERE, "--epochs", "2", "--lr", "5e-3", "--batch-size", "8"]
SHORT = [*HERE, "--epochs", "1", "--lr", "5e-3"]


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("base") / "model")


def finetune(kind, base, train, *options, out="out"):
    """The command's arguments; the training file is a name or rows."""
    if not isinstance(train, str):
        train = write_jsonl(Path("train.jsonl"), train)
    return ["finetune", kind, base, "--train", train, "--out", out, *(options or SHORT)]


def learn(kind, base, train, *options, out="out"):
    return result(*finetune(kind, base, train, *options, out=out))["tasks"][kind]


def refused(kind, base, train, *options, out="out"):
    """The one line that is said, behind which there is no folder; the columns may have been said before."""
    before = set(os.listdir()) | {"train.jsonl"}
    found = run(*finetune(kind, base, train, *options, out=out))
    *_, said = found.err.splitlines()
    assert found.status == 2 and said.startswith("modernbert: ") and "Traceback" not in found.err and not found.out
    assert set(os.listdir()) | {"train.jsonl"} == before, "nothing is half-written"
    return said


def lines(found):
    assert found.status == 0, found.err
    return [json.loads(line) for line in found.out.splitlines()]


def predict(folder, *arguments, stdin=""):
    return lines(run("predict", folder, *HERE, *arguments, stdin=stdin))


ROWS = [{"text": text, "label": name} for text, name in texts(24)]
PAIRS = [
    {"sentence1": one, "sentence2": other, "label": "same" if kind == another else "other"}
    for (one, kind), (other, another) in zip(texts(60, 3), texts(60, 4), strict=True)
]
QUESTIONS = [
    {"question": f"what {name}", "context": text, "id": str(place),
     "answers": {"text": [word], "answer_start": [text.index(word)]}}
    for place, (text, name) in enumerate(texts(40, 5))
    for word in PLACES[name] if word in text.split()
]  # fmt: skip


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """A folder of each kind, made by the command, and what it printed."""
    folder = tmp_path_factory.mktemp("made")
    files = {
        "classify": classify_files(folder, train=48)["train"], "tag": tag_files(folder, train=48)["train"],
        "pair": write_jsonl(folder / "pairs.jsonl", PAIRS), "answer": write_jsonl(folder / "asked.jsonl", QUESTIONS),
    }  # fmt: skip
    found = {}
    for kind, train in files.items():
        found[kind] = run(*finetune(kind, base, train, *SHORT, out=folder / kind))
        assert found[kind].status == 0, found[kind].err
    return folder, found


# --- finetune


@pytest.mark.parametrize("kind", ["classify", "pair", "tag", "answer"])
def test_each_task_is_learnt_from_a_file_alone(made, kind):
    folder, found = made
    assert json.loads((folder / kind / "config.json").read_text())["modernbert_task"]["kind"] == kind
    metrics = json.loads((folder / kind / "metrics.json").read_text())["tasks"][kind]
    known = {*taskdata._METRICS[metrics["problem"]], *(("f1", "matthews") if len(metrics["labels"]) == 2 else ())}
    assert set(metrics["validation"]) <= known, "whatever is scored can be asked for as --metric"
    assert metrics["metric"] in metrics["validation"] and (folder / kind / "README.md").stat().st_size > 500
    assert (folder / kind / "confusion.png").exists() == (kind != "answer")
    said = found[kind].out + found[kind].err
    assert "Traceback" not in said and f"{folder / kind}" in said and "held out for validation" in said


@pytest.mark.slow
def test_json_is_one_object_and_nothing_else(base):
    parts = classify_files(Path())
    found = result(*finetune("classify", base, parts["train"], "--validation", parts["validation"], *SHORT))
    assert found == json.loads(Path("out/metrics.json").read_text())


def test_help_shows_brackets_as_they_are():
    said = run("finetune", "--help").out
    assert "[[tasks]]" in said and "hf:NAME[:CONFIG][@SPLIT]" in said


def test_several_tasks_come_from_one_file(base):
    files = {**{f"c_{k}": v for k, v in classify_files(Path()).items()}, **tag_files(Path())}
    with open("tasks.toml", "wb") as file:
        tomli_w.dump({"epochs": 1, "tasks": [
            {"kind": "classify", "name": "places", "train": files["c_train"], "validation": files["c_validation"]},
            {"kind": "tag", "train": files["train"], "validation": files["validation"], "weight": 0.5},
        ]}, file)  # fmt: skip
    found = result("finetune", "several", base, "--tasks", "tasks.toml", "--out", "out", *HERE)
    assert list(found["tasks"]) == ["places", "tag"] and found["best"]["metric"] == "score"
    assert predict("out/places", "the river")[0].keys() == {"text", "label", "score"}
    assert "out has no config.json" in refusal("predict", "out", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "MODEL"], "give --train FILE"),
        (["several", "MODEL"], "modernbert finetune several MODEL --tasks tasks.toml"),
        (["several", "MODEL", "--tasks", "none.toml"], "none.toml"),
        (["classify", "nowhere/model", "--train", "train.jsonl"], "nowhere/model"),
        (["classify", "MODEL", "--train", "none.jsonl"], "none.jsonl: no such file"),
        (["classify", "MODEL", "--train", "train.jsonl", "--validation", "none.jsonl"], "none.jsonl: no such file"),
        (["classify", "MODEL", "--train", "train.jsonl", "--label-column", "labl"], "'labl'"),
        (["classify", "MODEL", "--train", "train.jsonl", "--text-column", "txt"], "'txt'"),
        (["classify", "MODEL", "--train", "train.jsonl", "--metric", "acuracy"], "acuracy"),
        (["classify", "MODEL", "--train", "train.jsonl", "--max-length", "129"], "max_length=129 exceeds"),
        (["classify", "MODEL", "--train", "train.jsonl", "--epochs", "0"], "epochs"),
        (["classify", "MODEL", "--train", "train.jsonl", "--lr", "-1"], "lr"),
        (["classify", "MODEL", "epohcs=3", "--train", "train.jsonl"], "epohcs"),
        (["tag", "MODEL", "--train", "train.jsonl"], "tags"),
        (["answer", "MODEL", "--train", "train.jsonl"], "question"),
        (["pair", "MODEL", "--train", "train.jsonl"], "pair"),
        (["classify", "MODEL", "--train", "empty.jsonl"], "empty.jsonl"),
        (["classify", "MODEL", "--train", "."], "."),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(base, arguments, message):
    write_jsonl(Path("train.jsonl"), ROWS)
    Path("empty.jsonl").touch()
    before = everything_in(Path())
    said = refusal("finetune", *[base if given == "MODEL" else given for given in arguments], "--out", "out", *HERE)
    assert message in said
    assert everything_in(Path()) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": float("nan")}, {"text": "b", "label": 1.5}], "nan as label"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": "one"}], "labels of mixed types"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "nothing can be learnt from one class"),
        ([{"text": "a", "label": "x"}], "nothing can be learnt from one class"),
        ([{"text": "a", "label": "x"}, {"text": None, "label": "y"}], "line 2: no text in 'text'"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], "line 2: no label"),
        ([{"text": "a", "label": "x"}, {"text": 3, "label": "y"}], "line 2: 'text' holds a int"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused_with_their_line(base, rows, message):
    assert message in refused("classify", base, rows)


def test_a_ragged_conll_file_is_refused_with_its_line(base):
    Path("train.conll").write_text("the O\nriver B-water\n\nhouse\n")
    assert "train.conll, line 4" in refused("tag", base, "train.conll")


def test_answers_that_are_nowhere_in_their_passage_are_left_out_and_said(base):
    lost = {"question": "what", "context": "the old house", "answers": {"text": ["sea"], "answer_start": [4]}}
    found = run(*finetune("answer", base, [*QUESTIONS, lost], *SHORT))
    assert found.status == 0 and "left out" in found.err + found.out, found.err
    write_jsonl(Path("lost.jsonl"), [lost, lost])
    assert "lost.jsonl" in refusal(*finetune("answer", base, "lost.jsonl", *SHORT, out="other"))


@pytest.mark.slow
def test_labels_that_training_does_not_have_are_said_and_count_as_wrong(base):
    write_jsonl(Path("dev.jsonl"), [*ROWS, {"text": "sand", "label": "desert"}])
    found = run(*finetune("classify", base, ROWS, "--validation", "dev.jsonl", *SHORT))
    assert found.status == 0 and "count as wrong: desert" in found.err + found.out


def test_a_class_with_one_example_and_an_empty_text_are_kept_and_said(base):
    rows = [*ROWS, {"text": "", "label": "alone"}]
    found = run(*finetune("classify", base, rows, "--validation", write_jsonl(Path("dev.jsonl"), ROWS), *SHORT))
    said = found.err + found.out
    assert found.status == 0 and "one example only: 'alone'" in said and "are empty; they are kept" in said
    assert [answer["text"] for answer in predict("out", "", "river")] == ["", "river"]


@pytest.mark.slow
def test_a_text_beyond_8192_tokens_is_cut_there_and_said(tiny_config, tiny_tokenizer, tmp_path):
    model = MaskedLM(tiny_config.replace(max_position_embeddings=8192), tiny_tokenizer).draw(0).save(tmp_path / "long")
    long = "the old river " * 4000
    rows = [{"text": long, "label": "long"}, {"text": "the house", "label": "short"}] * 2
    found = run(*finetune("classify", model, rows, "--validation", write_jsonl(tmp_path / "v.jsonl", rows), *SHORT))
    assert found.status == 0, found.err
    assert "8,192" in found.err + found.out
    (answer,) = predict("out", long)
    assert answer["text"] == long and answer["label"] in ("long", "short")


@pytest.mark.parametrize(
    "names",
    [
        ["水", 'so-called "天空"', "two\nlines, a|c"],
        ["", "sky", "town"],
    ],
)
def test_labels_stay_the_text_they_are(base, names):
    by_name = dict(zip(PLACES, names, strict=True))
    rows = [{"text": row["text"], "label": by_name[row["label"]]} for row in ROWS]
    if "" in names:
        assert "an empty label" in refused("classify", base, rows)
        return
    assert learn("classify", base, rows)["labels"] == sorted(names)
    (answer,) = predict("out", "the river")
    assert answer["label"] in names
    card = Path("out/README.md").read_text()
    assert card.count("\n---\n") == 1 and all(len(row) > 1 for row in card.split("\n| ")[1:])


def test_chinese_column_names_are_known(base):
    found = run(*finetune("classify", base, [{"标题": row["text"], "类别": row["label"]} for row in ROWS], *SHORT))
    assert found.status == 0 and "text = '标题', label = '类别'" in found.err, found.err


@pytest.mark.slow
def test_five_hundred_labels_are_learnt_and_drawn(base):
    rows = [{"text": f"{PLACES['sky'][n % 3]} {n}", "label": f"intent {n}"} for n in range(500)] * 2
    found = learn("classify", base, rows, *HERE, "--epochs", "0.1")
    assert len(found["labels"]) == 500 and Path("out/confusion.png").stat().st_size > 10_000
    assert Path("out/README.md").stat().st_size < 100_000


@pytest.mark.slow
def test_one_row_to_learn_from_will_do_where_others_validate(base):
    """Of numbers: a class alone cannot be learnt, and is refused above."""
    dev = write_jsonl(Path("dev.jsonl"), [{"text": "a river", "label": 0.5}, {"text": "a stone", "label": 1.5}])
    found = learn("classify", base, [{"text": "a house", "label": 2.5}], "--validation", dev, *SHORT)
    assert found["examples"] == {"train": 1, "validation": 2}


def test_one_row_alone_cannot_be_held_out(base):
    assert "give a validation file" in refused("classify", base, [{"text": "a house", "label": 2.5}])


def test_training_and_validation_may_be_one_file_and_that_is_said(base):
    write_jsonl(Path("train.jsonl"), ROWS)
    found = run(*finetune("classify", base, "train.jsonl", "--validation", "train.jsonl", *SHORT))
    assert found.status == 0, found.err
    assert "same file" in found.err + found.out


@pytest.mark.slow
def test_a_number_is_learnt_for_a_pair_and_said_as_one(base):
    rows = [{"sentence1": a, "sentence2": b, "label": float(n % 6) + 0.2}
            for n, ((a, _), (b, _)) in enumerate(zip(texts(24), texts(24, 1), strict=True))]  # fmt: skip
    found = learn("pair", base, rows)
    assert found["problem"] == "regression" and {"pearson", "spearman", "mse"} <= found["validation"].keys()
    assert not Path("out/confusion.png").exists()
    (answer,) = predict("out", "the river", "a house")
    assert isinstance(answer["value"], float) and answer["pair"] == "a house"


@pytest.mark.slow
def test_several_labels_are_learnt_for_a_text(base):
    rows = [
        {"text": text, "labels": [name, "long"] if len(text) > 30 else [name] * (name != "sky")}
        for text, name in texts(40)
    ]
    found = learn("classify", base, rows, *QUICK)
    assert found["problem"] == "multi" and found["labels"] == ["long", "sky", "town", "water"]
    (answer,) = predict("out", "the river")
    assert answer.keys() == {"text", "labels"} and all(one["score"] >= 0.5 for one in answer["labels"])


@pytest.mark.parametrize(
    "name",
    [
        "train.csv",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("train.tsv", "train.json", "train.parquet", "hf")),
    ],
)
def test_files_of_every_kind_are_learnt_from(base, name):
    if name == "hf":
        pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk("saved")
        name = "hf:saved"
    elif name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), name)
    elif name.endswith("json"):
        Path(name).write_text(json.dumps(ROWS))
    else:  # as spreadsheets save it: with a byte order mark
        with open(name, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    assert learn("classify", base, name)["labels"] == sorted(PLACES)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_learnt(base):
    Path("file").touch()
    assert "file/out" in refused("classify", base, ROWS, *SHORT, out="file/out")


# --- predict


def same(ours, theirs):
    assert [{**one, "score": 0} for one in ours] == [{**one, "score": 0} for one in theirs]
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-5)


def test_arguments_lines_and_files_give_the_same_answers(made):
    folder, asked = made[0] / "classify", ["a river and 石头", "the letter", "evening", "{not json}"]
    answers = predict(folder, *asked)
    assert [answer["text"] for answer in answers] == asked and all(0 < answer["score"] <= 1 for answer in answers)
    same(predict(folder, stdin="".join(f"{text}\n" for text in asked)), answers)
    same(predict(folder, stdin="".join(json.dumps({"text": text}) + "\n" for text in asked)), answers)
    rows = [{"text": text, "label": "sky"} for text in asked]
    Path("a.txt").write_text("\n".join(asked[:2]))
    write_jsonl(Path("b.jsonl"), rows[2:])
    same(predict(folder, "--file", "a.txt", "--file", "b.jsonl"), answers)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "c.parquet")
    same(predict(folder, "--file", "c.parquet"), answers)
    Path("d.csv").write_text(
        "number,sentence\n" + "".join(f"{n},{text}\n" for n, text in enumerate(asked)), "utf-8-sig"
    )
    same(predict(folder, "--file", "d.csv"), answers)
    same(predict(folder, "--file", "d.csv", "--text-column", "sentence"), answers)
    Path("e.json").write_text(json.dumps({"data": rows}))
    same(predict(folder, "--file", "e.json"), answers)


def test_an_empty_line_is_an_empty_text_and_has_its_answer(made):
    assert [answer["text"] for answer in predict(made[0] / "classify", stdin="river\n\nhouse")] == [
        "river",
        "",
        "house",
    ]


def test_pairs_come_two_by_two_as_objects_or_in_files(made):
    folder = made[0] / "pair"
    answers = predict(folder, "the river", "a stone", "a house", "the light")
    assert [(answer["text"], answer["pair"]) for answer in answers] == [
        ("the river", "a stone"),
        ("a house", "the light"),
    ]
    rows = [{"text": answer["text"], "pair": answer["pair"]} for answer in answers]
    same(predict(folder, stdin="".join(json.dumps(row) + "\n" for row in rows)), answers)
    write_jsonl(Path("p.jsonl"), [{"premise": row["text"], "hypothesis": row["pair"]} for row in rows])
    same(predict(folder, "--file", "p.jsonl"), answers)


def test_words_texts_and_conll_are_tagged(made):
    folder, text = made[0] / "tag", "the letter in the light"
    (of_text,) = predict(folder, text)
    assert of_text.keys() == {"text", "entities"}
    Path("t.conll").write_text("".join(f"{word}\n" for word in text.split()))
    (of_words,) = predict(folder, "--file", "t.conll")
    assert len(of_words["tags"]) == 5
    (of_list,) = predict(folder, stdin=json.dumps({"tokens": text.split()}) + "\n")
    for answer in (of_words, of_list):
        same(answer["entities"], of_text["entities"])
    for entity in of_text["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]


def test_questions_come_two_by_two_as_objects_or_as_squad(made):
    folder, passage = made[0] / "answer", "the old house and the river"
    (answer,) = predict(folder, "what water", passage)
    assert passage[answer["start"] : answer["end"]] == answer["answer"]
    Path("q.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [
        {"context": passage, "qas": [{"id": "q1", "question": "what water"}]}]}]}))  # fmt: skip
    (of_squad,) = predict(folder, "--file", "q.json")
    assert of_squad.pop("id") == "q1"
    (of_line,) = predict(folder, stdin=json.dumps({"question": "what water", "context": passage}))
    for found in (of_squad, of_line):
        assert found.pop("no_answer_score") == pytest.approx(answer["no_answer_score"], abs=1e-5)
        same([found], [{name: value for name, value in answer.items() if name != "no_answer_score"}])


@pytest.mark.parametrize(
    ("kind", "arguments", "stdin", "message"),
    [
        ("classify", [], "", "standard input is empty"),
        ("classify", ["x", "--file", "train.jsonl"], "", "not both"),
        ("classify", ["--file", "none.jsonl"], "", "none.jsonl: no such file"),
        ("classify", ["--file", "train.jsonl", "--text-column", "txt"], "", "'txt'"),
        ("classify", [], '{"label": "x"}\n', "give a text, or a pair"),
        ("classify", [], '{"text": "a", "pair": "b"}\n', "a pair, and this model takes single texts"),
        ("pair", ["alone"], "", "an odd number of texts (1)"),
        ("pair", [], "alone\n", "line 1 is one text"),
        ("pair", [], '{"text": "a", "pair": \n', "line 1 is no JSON object"),
        ("answer", ["q", "p", "q"], "", "an odd number of texts (3)"),
        ("answer", [], '{"question": "a"}\n', "question and context"),
        ("tag", [], '{"tokens": ["a", 3]}\n', "give a text, or the words of one"),
    ],
)
def test_what_cannot_be_answered_is_one_line(made, kind, arguments, stdin, message):
    write_jsonl(Path("train.jsonl"), ROWS)
    assert message in refusal("predict", made[0] / kind, *HERE, *arguments, stdin=stdin)


def test_a_folder_without_a_head_or_of_something_else_is_refused(base):
    assert "no head that classifies, tags or answers" in refusal("predict", base, "x")
    assert "no such folder" in refusal("predict", "nowhere", "x")
    Path("empty").mkdir()
    assert "empty has no config.json" in refusal("predict", "empty", "x")


def test_a_fine_tuned_folder_is_taught_another_task(made):
    assert learn("classify", made[0] / "tag", ROWS)["labels"] == sorted(PLACES)
    assert predict("out", "river")[0].keys() == {"text", "label", "score"}


# --- interruptions


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_same_command_goes_on_after_a_signal(base, number):
    command = finetune("classify", base, ROWS, *HERE, "--epochs", "40", "--lr", "5e-3", "evaluations=2")

    def interrupt():
        rows = Path("out/run/metrics.jsonl")
        while not rows.exists() or rows.read_text().count('"train"') < 3:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    found = run(*command)
    thread.join()
    assert found.status == 75 and found.err.splitlines()[-1].endswith("the same command goes on from there"), found.err
    assert os.listdir("out") == ["run"], "nothing that looks like a model"
    assert "out has no config.json" in refusal("predict", "out", "x")
    again = run(*command)
    assert again.status == 0 and "going on with" in again.err, again.err
    metrics = Path("out/metrics.json").read_bytes()
    assert run(*command).status == 0 and Path("out/metrics.json").read_bytes() == metrics


# --- evaluate and compare


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sets of the suite `classify`, as they lie in a data folder."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("banking77", "scicite"):
        (folder / name).mkdir()
        for seed, (part, count) in enumerate((("train", 40), ("test", 30), ("validation", 20))):
            rows = [{"text": text, "label": label} for text, label in texts(count, seed)]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name / f"{part}.parquet")
    return folder


FEW = [*HERE, "--tasks", "banking77", "--seeds", "2", "--epochs", "1", "--max-length", "64", "--lr", "5e-3"]


def test_a_suite_gives_a_line_a_score_once_and_two_models_are_compared(base, made, data):
    command = ["evaluate", base, "--suite", "classify", "--data", data, "--out", "a.jsonl", "--json", *FEW]
    scores = lines(run(*command))
    assert scores and all(score["task"] == "banking77" and score["n"] == 2 for score in scores)
    assert {"accuracy"} <= {score["metric"] for score in scores} and "protocol" in scores[0]
    stored = Path("a.jsonl").read_bytes()
    assert lines(run(*command)) == scores and Path("a.jsonl").read_bytes() == stored, "nothing is done twice"
    other = ["evaluate", made[0] / "classify", *command[2:6], "--out", "b.jsonl", *FEW]
    shown = run(*other)
    assert shown.status == 0 and "banking77" in shown.out and "modernbert compare b.jsonl" in shown.err, shown.err
    compared = result("compare", "a.jsonl", "b.jsonl", "--plot", "both.png")
    assert "banking77" in json.dumps(compared) and Path("both.png").stat().st_size > 5_000
    assert run("compare", "a.jsonl", "b.jsonl").status == 0 and Path("compare.png").exists()


@pytest.mark.slow
def test_the_probe_takes_frozen_vectors_and_names_what_is_absent(base, data):
    pytest.importorskip("sklearn")
    found = run(
        "evaluate", base, "--suite", "probe", "--data", data, "--json", *HERE, "--seeds", "1", "--max-length", "64"
    )
    assert {score["task"] for score in lines(found)} == {"banking77", "scicite"}
    assert found.err.count("absent") == 5, found.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "MODEL", "--data", "none"], "none has none of the"),
        (["evaluate", "MODEL", "--suite", "classify", "--data", "DATA", "--tasks", "bank"], "'bank'"),
        (["evaluate", "MODEL", "--suite", "classify", "--data", "DATA", "--lr", "fast"], "fast"),
        (["evaluate", "MODEL", "--suite", "classify", "--data", "DATA", "epohcs=1"], "epohcs"),
        (["evaluate", "nowhere/model", "--data", "DATA"], "nowhere/model"),
        (["compare", "none.jsonl"], "none.jsonl"),
        (["compare", "train.jsonl"], "train.jsonl"),
        (["compare", "DATA"], "scores.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_leaves_nothing(base, data, arguments, message):
    write_jsonl(Path("train.jsonl"), ROWS)
    before = everything_in(Path())
    found = run(*[{"MODEL": base, "DATA": data}.get(given, given) for given in arguments])
    *_, said = found.err.splitlines()
    assert found.status == 2 and said.startswith("modernbert: ") and "Traceback" not in found.err, found.err
    assert message in said and everything_in(Path()) == before
