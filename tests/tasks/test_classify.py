"""Classification of texts and pairs: losses, answers, and the same from transformers' class."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modernbert import MaskedLM
from modernbert.batch import PackedBatch, idle_batch, pack_features
from modernbert.errors import CheckpointError, DataError
from modernbert.tasks import load
from modernbert.tasks.classify import Classifier, pooled
from modernbert.tasks.head import HeadSettings, LossSettings
from modernbert.tasks.several import SeveralHeads
from modernbert.text.examples import TextExample

LABELS = ("bad", "good", "so-so")
TEXTS = ("the river sings", "a stone house in the old forest", "", "quiet " * 60)


def classifier(config, tokenizer, *, labels=LABELS, problem="single", kind="classify", seed=0, **settings):
    settings = {"max_length": 128, **settings}
    head = HeadSettings(kind=kind, labels=labels, problem=problem, **settings)
    return Classifier(config, tokenizer, head).draw(seed).eval()


@pytest.fixture
def model(tiny_config, tiny_tokenizer):
    return classifier(tiny_config, tiny_tokenizer)


def labelled(*labels):
    return [TextExample(text=text, label=label) for text, label in zip(TEXTS, labels, strict=False)]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_is_that_of_each_document_alone(pooling):
    batch = PackedBatch.from_sequences([[1, 2, 3], [4], [5, 6]])
    hidden_TD = torch.randn(6, 4)
    rows = [part.mean(0) if pooling == "mean" else part[0] for part in hidden_TD.split([3, 1, 2])]
    torch.testing.assert_close(pooled(hidden_TD, batch, pooling), torch.stack(rows))


def test_the_mean_of_a_long_text_in_half_precision_is_taken_in_float32():
    batch = PackedBatch.from_sequences([[1] * 4096])
    hidden_TD = torch.full((4096, 2), 1.001, dtype=torch.bfloat16)
    assert pooled(hidden_TD, batch, "mean").tolist() == [[1.0, 1.0]]


def test_the_loss_of_a_batch_is_the_sum_of_its_documents_losses(model):
    batch = pack_features(model.features(labelled("good", "bad", "bad", "so-so")))
    output = model(batch)
    expected = F.cross_entropy(model.logits(batch), batch.targets_B, reduction="none")
    torch.testing.assert_close(output.losses_M, expected.detach())
    torch.testing.assert_close(output.loss_sum, expected.sum())
    assert output.num_targets == 4


def test_class_weights_and_smoothing_are_pytorchs(model):
    model.loss = LossSettings(class_weights=(0.5, 2.0, 1.0), label_smoothing=0.1)
    batch = pack_features(model.features(labelled("good", "bad")))
    expected = F.cross_entropy(
        model.logits(batch), batch.targets_B, torch.tensor([0.5, 2.0, 1.0]), label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(model(batch).loss_sum, expected)


def test_several_classes_may_apply_or_none(tiny_config, tiny_tokenizer):
    model = classifier(tiny_config, tiny_tokenizer, problem="multi")
    batch = pack_features(model.features(labelled(("good", "bad"), (), ("so-so",))))
    assert batch.targets_B.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    expected = F.binary_cross_entropy_with_logits(model.logits(batch), batch.targets_B, reduction="none").mean(1)
    torch.testing.assert_close(model(batch).losses_M, expected.detach())
    answer = model.predict(TEXTS[0])[0]
    assert all(found["score"] >= 0.5 for found in answer["labels"])


def test_a_number_is_learnt_by_squared_error(tiny_config, tiny_tokenizer):
    model = classifier(tiny_config, tiny_tokenizer, labels=("value",), problem="regression")
    batch = pack_features(model.features(labelled(1.5, 0.0)))
    expected = (model.logits(batch).squeeze(1) - torch.tensor([1.5, 0.0])).square()
    torch.testing.assert_close(model(batch).losses_M, expected.detach())
    assert model.predict(TEXTS[0])[0].keys() == {"text", "value"}


def test_answers_do_not_depend_on_what_is_in_the_batch(model):
    together = model.predict(list(TEXTS))
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = model.predict(text)
        assert alone["label"] == answer["label"] and alone["text"] == text
        assert alone["score"] == pytest.approx(answer["score"], abs=1e-5)


def test_a_text_beyond_the_length_is_cut_and_keeps_its_last_special_token(tiny_config, tiny_tokenizer):
    model = classifier(tiny_config, tiny_tokenizer, max_length=12)
    (long,) = model.features([TextExample(text=TEXTS[3])])
    assert len(long.ids_T) == 12 and long.ids_T[-1] == tiny_config.sep_token_id
    assert model.features([TextExample(text="")])[0].ids_T.tolist() == [
        tiny_config.cls_token_id,
        tiny_config.sep_token_id,
    ]


def test_a_pair_is_read_with_a_separator_between(tiny_config, tiny_tokenizer):
    model = classifier(tiny_config, tiny_tokenizer, kind="pair")
    (feature,) = model.features([TextExample(text="the river", pair="a house")])
    assert (feature.ids_T == tiny_config.sep_token_id).sum() == 2
    assert model.predict([("the river", "a house")]) == model.predict([{"text": "the river", "pair": "a house"}])
    assert model.predict([("the river", "a house")])[0]["label"] in LABELS


@pytest.mark.parametrize(
    ("kind", "items", "message"),
    [
        ("classify", [("a", "b")], "item 1 is a pair, and this model takes single texts"),
        ("pair", ["alone"], "item 1 is one text, and this model takes pairs"),
        ("classify", ["fine", 3], "item 2 is 3"),
        ("classify", [{"txt": "a"}], "give a text, or a pair"),
    ],
)
def test_what_is_no_item_is_refused_in_one_line(tiny_config, tiny_tokenizer, kind, items, message):
    with pytest.raises(DataError, match=message):
        classifier(tiny_config, tiny_tokenizer, kind=kind).predict(items)


def test_a_label_that_the_head_does_not_have_is_refused_by_name(model):
    with pytest.raises(DataError, match=r"dev.csv:7: label 'superb' is none of the model's 3 labels"):
        model.features([TextExample(text="a", label="superb", where="dev.csv:7")])


def test_an_idle_batch_costs_nothing_and_reaches_every_parameter(model):
    output = model(idle_batch())
    output.loss_sum.backward()
    assert output.loss_sum == 0 and output.num_targets == 0
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("problem", "labels"), [("single", LABELS), ("multi", LABELS), ("regression", ("value",))])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_transformers_opens_the_folder_and_says_the_same(
    tiny_config, tiny_tokenizer, tmp_path, problem, labels, pooling
):
    transformers = pytest.importorskip("transformers")
    model = classifier(tiny_config, tiny_tokenizer, problem=problem, labels=labels, pooling=pooling)
    model.save(tmp_path / "m")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    inputs = tokenizer(list(TEXTS), padding=True, truncation=True, return_tensors="pt", max_length=128)
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    found = np.stack(model.outputs(model.features([TextExample(text=text) for text in TEXTS])))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert [theirs.config.id2label[i] for i in range(len(labels))] == list(labels)
    again = load(tmp_path / "m")
    assert isinstance(again, Classifier) and again.settings == model.settings


def test_a_folder_of_transformers_opens_here(tiny_config, tiny_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    MaskedLM(tiny_config, tiny_tokenizer).draw(0).save(tmp_path / "base")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(**tokenizer(TEXTS[1], return_tensors="pt")).logits.softmax(-1)[0]
    (answer,) = ours.predict(TEXTS[1])
    assert answer["label"] == LABELS[int(expected.argmax())]
    assert answer["score"] == pytest.approx(expected.max().item(), abs=1e-5)


def test_labels_that_do_not_fit_the_classifier_are_refused(model, tmp_path):
    model.save(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"2": "so-so"', '"2": "so-so", "3": "more"'))
    with pytest.raises(CheckpointError, match="4 labels and the classifier has 3 outputs"):
        load(tmp_path / "m")


def test_a_head_on_a_pretrained_model_takes_its_encoder_and_dense_layer(tiny_model, tiny_config, tiny_tokenizer):
    model = classifier(tiny_config, tiny_tokenizer, seed=5).take_encoder(tiny_model)
    ours, theirs = model.state_dict(), tiny_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name in ours)
    assert {name for name in ours if name not in theirs} == {"classifier.weight", "classifier.bias"}


def test_one_encoder_learns_under_several_heads(tiny_config, tiny_tokenizer):
    first = classifier(tiny_config, tiny_tokenizer)
    second = classifier(tiny_config, tiny_tokenizer, labels=("x", "y"), seed=1)
    both = SeveralHeads({"a": first, "b": second}, {"a": 1.0, "b": 3.0})
    batch = pack_features(second.features([TextExample(text=TEXTS[1], label="y")]), "b")
    output = both(batch)
    torch.testing.assert_close(output.loss_sum, 3.0 * second(batch).loss_sum)
    output.loss_sum.backward()
    assert all(p.grad is not None for p in both.parameters()), "a parameter without gradient keeps other ranks waiting"
    assert not first.classifier.weight.grad.any() and second.classifier.weight.grad.any()
    assert first.model is second.model
    assert (first.config.extra["id2label"]["0"], second.config.extra["id2label"]["0"]) == ("bad", "x")
    names = [name for name, _ in both.named_parameters()]
    assert len(names) == len(set(names)) and sum("embeddings" in name for name in names) == 2
