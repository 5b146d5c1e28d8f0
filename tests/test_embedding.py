"""`finetune embed`: sentence-transformers' losses on packed batches are its own, and the folder opens there."""

import json
import os
import random
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from test_cli import HERE, refusal, result, run
from tiny_tasks import PLACES, texts, write_jsonl

import modernbert
from modernbert.embedding import finetune_embedder
from modernbert.errors import ConfigError, DataError, StoppedError
from modernbert.model.config import PRESETS
from modernbert.runtime import Runtime
from modernbert.tasks import Embedder
from modernbert.tasks.embed import EmbedSettings
from modernbert.teaching import Teacher
from modernbert.train.embed import EmbedRun

pytest.importorskip("sentence_transformers", minversion="5.4")
pytestmark = pytest.mark.usefixtures("own_place")
QUICK = {"batch_size": 16, "epochs": 3, "lr": 5e-3, "max_length": 64}


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("base") / "model")


def pairs(count, seed=0):
    """Two texts of one place each."""
    by_place = {name: [text for text, place in texts(8 * count, seed) if place == name] for name in PLACES}
    draw = random.Random(seed)
    names = [draw.choice(sorted(PLACES)) for _ in range(count)]
    return [{"query": draw.choice(by_place[name]), "positive": draw.choice(by_place[name])} for name in names]


def learn(base, rows, out="out", progress=lambda *_: None, **settings):
    write_jsonl(Path("train.jsonl"), rows)
    wanted = EmbedRun.parse({"model": str(base), "train": "train.jsonl", **QUICK, **settings})
    return finetune_embedder(wanted, Path(out), Runtime.detect(device="cpu", num_threads=1), progress=progress)


def rows_of(kind):
    draw = random.Random(1)
    rows = pairs(80)
    for row in rows:
        row |= {"negative": draw.choice(rows)["positive"]} if kind in ("triplets", "margins") else {}
        row |= {"score": draw.random()} if kind in ("scored", "margins") else {}
    return rows


@pytest.mark.parametrize("name", ["MultipleNegativesRanking", "CachedMultipleNegativesRanking", "CoSENT", "CosineSimilarity",
                                  "MarginMSE", "EmbedDistill", "Matryoshka"])  # fmt: skip
def test_losses_and_gradients_on_packed_batches_are_the_librarys(base, name):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    model = SentenceTransformer(modules=[Transformer(str(base)), Pooling(32), Normalize()], device="cpu").float()
    columns = [[row[role] for row in rows_of("triplets")[:12]] for role in ("query", "positive", "negative")]
    scores = torch.rand(12, generator=torch.Generator().manual_seed(0))
    taught = torch.nn.functional.normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    made = {
        "Matryoshka": lambda: losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [32, 8]),
        "CachedMultipleNegativesRanking": lambda: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=5),
    }.get(name, lambda: getattr(losses, f"{name}Loss")(model))()
    count, labels = {"CoSENT": (2, scores), "CosineSimilarity": (2, scores), "MarginMSE": (3, scores),
                     "EmbedDistill": (1, taught)}.get(name, (3, torch.empty(0)))  # fmt: skip
    found = []
    for treat in (modernbert.restore, modernbert.accelerate):
        treat(model)
        model.zero_grad()
        features = [model.tokenize(column) for column in columns[:count]]
        loss = made(features, labels)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (stock, gradients), (packed, others) = found
    assert packed == pytest.approx(stock, abs=1e-5) and stock != 0
    assert gradients.keys() == others.keys() and gradients
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, others[key], atol=1e-5), key


def test_pairs_are_learnt_and_the_folder_opens_everywhere(base):
    from sentence_transformers import SentenceTransformer

    found = learn(base, pairs(200), matryoshka=[8], query_prompt="the ", document_prompt="of ")
    assert found["loss"] == "in-batch" and found["validation"] > found["before"]
    asked = [text for text, _ in texts(20, seed=9)]
    theirs = SentenceTransformer("out", device="cpu")
    assert np.allclose(theirs.encode_query(asked), modernbert.encode("out", asked, prompt="query"), atol=1e-5)
    assert np.allclose(theirs.encode_document(asked), modernbert.encode("out", asked, prompt="document"), atol=1e-5)
    assert np.allclose(theirs.encode(asked), modernbert.encode("out", asked), atol=1e-5)
    cut = modernbert.encode("out", asked, truncate_dim=8)
    assert np.allclose(theirs.encode(asked, truncate_dim=8, normalize_embeddings=True), cut, atol=1e-5)
    assert not np.allclose(modernbert.encode("out", asked), modernbert.encode("out", asked, prompt="query"), atol=1e-3)
    assert sorted(os.listdir("out/run")) == [".lock", "recipe.json"]
    modernbert.load("out").save("again")  # ours, read and written
    assert np.allclose(
        SentenceTransformer("again", device="cpu").encode_query(asked), theirs.encode_query(asked), atol=1e-5
    )


@pytest.mark.parametrize("kind,loss", [
    ("triplets", "cached"), ("scored", "auto"), ("scored", "cosine"), ("margins", "auto"),
])  # fmt: skip
def test_each_kind_of_file_has_its_loss(base, kind, loss):
    found = learn(base, rows_of(kind), loss=loss, epochs=1, evaluations=1)
    usual = {"triplets": "in-batch", "scored": "cosent", "margins": "margin-mse"}[kind]
    assert found["loss"] == (usual if loss == "auto" else loss) and found["steps"] == 4


@pytest.mark.parametrize("width", [32, 16, 48])
def test_a_student_learns_its_teachers_vectors_whatever_their_width(base, tiny_tokenizer, tiny_config, width):
    teacher = modernbert.MaskedLM(tiny_config.replace(hidden_size=width, num_attention_heads=2), tiny_tokenizer).draw(3)
    Embedder.of(teacher.eval(), EmbedSettings()).save("teacher")
    found = learn(base, [{"text": text} for text, _ in texts(200)], teacher="teacher")
    assert found["metric"] == "cosine_to_teacher" and found["validation"] > found["before"] + 0.3


@pytest.fixture
def small_presets(own_place, tiny_tokenizer, tiny_config, monkeypatch):
    """A teacher's folder, and a preset `tiny` that is as small as our tests' models."""
    teacher = modernbert.MaskedLM(tiny_config.replace(hidden_size=48, num_attention_heads=2), tiny_tokenizer).draw(3)
    Embedder.of(teacher.eval(), EmbedSettings()).save("teacher")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    monkeypatch.setitem(
        PRESETS, "tiny", PRESETS["tiny"].replace(**{name: getattr(tiny_config, name) for name in names})
    )


@pytest.mark.usefixtures("small_presets")
def test_a_new_student_begins_with_its_teachers_words(tiny_tokenizer, tiny_config, monkeypatch):
    words = {token: tiny_tokenizer.decode([token]) for token in tiny_tokenizer.get_vocab().values()}
    alone = [
        token for token, word in words.items() if tiny_tokenizer.encode(word, add_special_tokens=False).ids == [token]
    ]
    seen, teach = {}, Teacher.teach_tokens

    def watched(self, embeddings_VD):
        seen["drawn"] = embeddings_VD.detach().clone()
        is_done = teach(self, embeddings_VD)
        seen["taught"] = embeddings_VD.detach().clone()
        seen["vectors"] = torch.from_numpy(self.vectors([words[token] for token in alone]))
        return is_done

    monkeypatch.setattr(Teacher, "teach_tokens", watched)
    found = learn("tiny", [{"text": text} for text, _ in texts(200)], teacher="teacher", epochs=1)
    assert found["before"] < 0.5 < found["validation"]
    drawn, taught, vectors = seen["drawn"], seen["taught"], seen["vectors"]
    assert taught.std().item() == pytest.approx(drawn.std().item(), rel=0.2)
    distances = torch.stack([torch.cdist(some, some).flatten() for some in (taught[alone], vectors)])
    assert torch.corrcoef(distances)[0, 1] > 0.99, "tokens are as far apart as the teacher has them"
    assert torch.equal(taught[tiny_tokenizer.token_to_id("[CLS]")], drawn[tiny_tokenizer.token_to_id("[CLS]")])
    assert modernbert.encode("out", ["a"]).shape == (1, tiny_config.hidden_size)
    with pytest.raises(ConfigError, match="a shape that has learnt nothing"):
        learn("tiny", pairs(40), out="other")


@pytest.mark.usefixtures("small_presets")
def test_a_new_student_that_was_stopped_goes_on_whatever_its_folder_is_called():
    rows, settings = [{"text": text} for text, _ in texts(120)], {"teacher": "teacher", "epochs": 2}
    unbroken = learn("tiny", rows, out="unbroken", **settings)

    def stop_at(place):
        def progress(done, _total, note):
            if place in note and (place == "tokens" or done >= 4):
                os.kill(os.getpid(), signal.SIGTERM)

        return progress

    for place in ("tokens", "steps"):
        with pytest.raises(StoppedError):
            learn("tiny", rows, out="tiny", progress=stop_at(place), **settings)
    found = learn("tiny", rows, out="tiny", **settings)
    assert found["before"] == unbroken["before"]
    assert found["validation"] == pytest.approx(unbroken["validation"], abs=1e-6)


def test_a_stopped_run_goes_on_to_where_an_unbroken_one_ends(base):
    unbroken = learn(base, pairs(120), out="unbroken")

    def stop_at_half(done, total, _note):
        if done == total // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        learn(base, pairs(120), progress=stop_at_half)
    assert os.listdir("out") == ["run"], "no result before the end"
    with pytest.raises(ConfigError, match="holds a fine-tuning with other settings or data"):
        learn(base, pairs(120), seed=1)
    found = learn(base, pairs(120))
    assert (found["before"], found["steps"]) == (unbroken["before"], unbroken["steps"])
    assert found["validation"] == pytest.approx(unbroken["validation"], abs=1e-6)
    asked = [text for text, _ in texts(5)]
    assert np.allclose(modernbert.encode("out", asked), modernbert.encode("unbroken", asked), atol=1e-5)


def test_a_text_has_one_target_in_whatever_part_it_is(tiny_tokenizer, tiny_config):
    wide = tiny_config.replace(hidden_size=48, num_attention_heads=2)
    Embedder.of(modernbert.MaskedLM(wide, tiny_tokenizer).draw(3).eval(), EmbedSettings()).save("teacher")
    Path("work").mkdir()
    teacher = Teacher("teacher", "cpu", 32, Path("work"), lambda: False, lambda *_: None)
    train, other = ([text for text, _ in texts(count, seed)] for count, seed in ((90, 0), (30, 4)))
    assert teacher.has(train) and teacher.has(other)
    alone, among = teacher.vectors([train[0]])[0], teacher.vectors(train)[0]
    assert np.allclose(alone, among, atol=1e-6) and alone.shape == (32,)
    cosines = teacher.vectors(train[:20]) @ teacher.vectors(train[:20]).T
    stock = modernbert.encode("teacher", train[:20])
    assert np.corrcoef(cosines.ravel(), (stock @ stock.T).ravel())[0, 1] > 0.98


def test_what_was_cut_off_while_it_was_written_does_not_count(base):
    learn(base, pairs(120), out="whole")

    def stop(done, total, _note):
        if done == total // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        learn(base, pairs(120), progress=stop)
    half = Path("out/run/checkpoint-999999")
    half.mkdir()
    (half / "model.safetensors").write_text("cut")
    found = learn(base, pairs(120))
    assert not half.exists() and found["steps"] == json.loads(Path("whole/metrics.json").read_text())["steps"]
    Path("out/metrics.json").unlink()  # as if it had been killed while results were moved up
    assert learn(base, pairs(120))["validation"] == pytest.approx(found["validation"], abs=1e-6)


def test_a_finished_folder_is_not_taken_for_another_fine_tuning(base):
    learn(base, pairs(60), epochs=1)
    with pytest.raises(ConfigError, match="with other settings or data"):
        learn(base, pairs(60), epochs=2)
    Path("other").mkdir()
    Path("other/metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no fine-tuning of an embedder"):
        learn(base, pairs(60), out="other")


def test_an_embedder_that_goes_on_keeps_its_prompts(base):
    learn(base, pairs(60), out="first", epochs=1, query_prompt="the ", pooling="cls")
    learn("first", pairs(60, seed=2), out="second", epochs=1)
    assert modernbert.load("second").settings.prompts == {"query": "the "}
    with pytest.raises(ConfigError, match="is an embedder by cls"):
        learn("first", pairs(60), out="third", pooling="mean")


def test_rates_by_layer_are_the_trainers(base):
    import transformers

    from modernbert import embedding

    seen = []
    make = transformers.get_linear_schedule_with_warmup
    with mock.patch.object(
        transformers, "get_linear_schedule_with_warmup",
        lambda optimizer, *a: seen.append({group["lr"] for group in optimizer.param_groups}) or make(optimizer, *a),
    ):  # fmt: skip
        learn(base, pairs(60), epochs=1, optim={"layer_decay": 0.5})
    assert embedding and sorted(seen[0]) == pytest.approx([5e-3 * 0.5**depth for depth in (4, 3, 2, 1)])


EIGHT = [{"query": f"a{n}", "positive": "b"} for n in range(8)]


@pytest.mark.parametrize("rows,settings,error,message", [
    ([{"text": f"a{n}"} for n in range(8)], {}, ConfigError, "give --teacher MODEL, or pairs"),
    ([{"query": "a", "positive": "b"}] * 2, {}, DataError, "2 rows are too few"),
    (EIGHT, {"loss": "cosent"}, ConfigError, "loss=cosent takes scored, and train"),
    (EIGHT, {"max_length": 999}, ConfigError, "exceeds the model's 128 positions"),
    (EIGHT, {"matryoshka": [64]}, ConfigError, "exceeds the model's 32 dimensions"),
    ([{"text": f"a{n}"} for n in range(8)], {"teacher": "nowhere"}, DataError, "teacher nowhere cannot be opened"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(base, rows, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        learn(base, rows, **settings)
    assert "\n" not in str(caught.value)


def test_on_the_command_line(base):
    write_jsonl(Path("pairs.jsonl"), pairs(60))
    arguments = [
        "finetune",
        "embed",
        base,
        "--train",
        "pairs.jsonl",
        "--out",
        "emb",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        *HERE,
    ]
    found = result(*arguments)
    assert (
        found["loss"] == "in-batch"
        and json.loads(Path("emb/metrics.json").read_text())["validation"] == found["validation"]
    )
    assert "is finished; nothing to do" in run(*arguments).err
    assert "--text-column: of no use for embed" in refusal(*arguments, "--text-column", "x")
    assert "--teacher: of no use for classify" in refusal(
        "finetune", "classify", base, "--train", "x", "--teacher", "t"
    )
