"""The BERT-style classes against transformers' on the same folder, drawn large, so that a mistake moves the outputs."""

import logging
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modernbert import MaskedLM, load
from modernbert.dropin.bert import (
    ModernBERTForMaskedLM,
    ModernBERTForQuestionAnswering,
    ModernBERTForSequenceClassification,
    ModernBERTForTokenClassification,
    ModernBERTModel,
)
from modernbert.dropin.bert_config import ModernBERTConfig
from modernbert.dropin.bert_output import ModelOutput
from modernbert.dropin.bert_tokenizer import ModernBERTTokenizer
from modernbert.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from modernbert.model import hub

CLASSES = {
    kind.architecture: kind
    for kind in (
        *(ModernBERTModel, ModernBERTForMaskedLM, ModernBERTForSequenceClassification),
        *(ModernBERTForTokenClassification, ModernBERTForQuestionAnswering),
    )
}
BARE, MLM, SEQUENCE, TOKENS, QA = CLASSES
LENGTHS = [40, 1, 9, 23]  # a token sees 4 on either side


def drawn(kind, config, **changes):
    """One of ours with weights so large that a mistake shows."""
    values = {name: value for name, value in config.__dict__.items() if name != "extra"}
    values |= {
        "num_labels": 2 if kind == QA else 3,
        "classifier_pooling": "mean",
        "layer_types": list(config.layer_types),
    }
    model = CLASSES[kind](ModernBERTConfig(**values | changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise) if parameter.dim() == 1 else parameter.copy_(0.2 * noise)
    return model.eval()


@pytest.fixture
def folder_of(tmp_path, tiny_config, tiny_tokenizer):
    def make(kind, **changes):
        folder = tmp_path / kind
        model = drawn(kind, tiny_config, **changes)
        model.tokenizer = tiny_tokenizer
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def theirs():
    transformers = pytest.importorskip("transformers", minversion="5")
    transformers.logging.set_verbosity_error()
    return lambda kind, folder, **changes: getattr(transformers, kind).from_pretrained(folder, **changes).eval()


def rows(side="right", lengths=LENGTHS):
    """Ids, and the mask of rows of these lengths."""
    longest = max(lengths)
    ids_BS = torch.randint(5, 300, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    mask_BS = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids_BS, "attention_mask": mask_BS if side == "right" else mask_BS.flip(1)}


def labels_of(kind, inputs):
    mask_BS = inputs["attention_mask"]
    if kind in (MLM, TOKENS):
        drawn_BS = inputs["input_ids"] % (3 if kind == TOKENS else 300)
        return {"labels": drawn_BS.masked_fill((mask_BS == 0) | (inputs["input_ids"] % 4 == 0), -100)}
    if kind == SEQUENCE:
        return {"labels": torch.arange(len(mask_BS)) % 3}
    if kind == QA:
        last_B = (mask_BS * torch.arange(mask_BS.shape[1])).argmax(1)
        ends_B = last_B.clone()
        ends_B[0] = mask_BS.shape[1] + 3  # beyond the row: not counted
        return {"start_positions": last_B, "end_positions": ends_B}
    return {}


def assert_same(ours, stock, mask_BS):
    """Wherever there are tokens, and numbers everywhere."""
    assert ours.isfinite().all() and ours.shape == stock.shape
    if ours.shape[:2] == mask_BS.shape:
        ours, stock = ours[mask_BS.bool()], stock[mask_BS.bool()]
    assert stock.abs().max() > 0.1
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", CLASSES)
def test_logits_and_hidden_states_are_those_of_transformers(kind, side, folder_of, theirs):
    folder, inputs = folder_of(kind), rows(side)
    ours = CLASSES[kind].from_pretrained(folder)(**inputs, output_hidden_states=True)
    stock = theirs(kind, folder)(**inputs, output_hidden_states=True)
    assert list(ours) == list(stock)
    assert len(ours.hidden_states) == len(stock.hidden_states) == 4
    for name in ours:
        pairs = zip(ours[name], stock[name], strict=True) if name == "hidden_states" else [(ours[name], stock[name])]
        for of_ours, of_stock in pairs:
            assert_same(of_ours, of_stock, inputs["attention_mask"])


@pytest.mark.parametrize("lengths", [LENGTHS, [23, 23]], ids=["padded", "full"])
@pytest.mark.parametrize("kind", [MLM, SEQUENCE, TOKENS, QA])
def test_the_loss_and_its_gradients_are_those_of_transformers(kind, lengths, folder_of, theirs):
    if kind == QA:
        lengths = [23] * len(lengths)  # padded: the next test
    folder, inputs = folder_of(kind), rows(lengths=lengths)
    targets = labels_of(kind, inputs)
    models = CLASSES[kind].from_pretrained(folder), theirs(kind, folder)
    losses = [model(**inputs, **targets).loss for model in models]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    gradients = []
    for model, loss in zip(models, losses, strict=True):
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3)


def test_an_answer_is_never_looked_for_at_padding(folder_of, theirs):
    folder, inputs = folder_of(QA), rows()
    targets, mask_BS = labels_of(QA, inputs), inputs["attention_mask"].bool()
    stock = theirs(QA, folder)(**inputs)
    real_BS = stock.start_logits.masked_fill(~mask_BS, float("-inf"))
    expected = torch.nn.functional.cross_entropy(real_BS, targets["start_positions"])
    assert not torch.isclose(expected, theirs(QA, folder)(**inputs, **targets).loss)  # which padding has changed
    ours = ModernBERTForQuestionAnswering.from_pretrained(folder)(
        **inputs, start_positions=targets["start_positions"], end_positions=targets["start_positions"]
    )
    ends_BS = stock.end_logits.masked_fill(~mask_BS, float("-inf"))
    expected = (expected + torch.nn.functional.cross_entropy(ends_BS, targets["start_positions"])) / 2
    torch.testing.assert_close(ours.loss, expected)
    assert (ours.start_logits[~mask_BS] < -9_999).all() and mask_BS.gather(1, ours.end_logits.argmax(1)[:, None]).all()
    with pytest.raises(DataError, match=r"start_positions\[1\]=30 is padding"):
        ModernBERTForQuestionAnswering.from_pretrained(folder)(
            **inputs, start_positions=torch.tensor([30, 30, 2, 2]), end_positions=torch.tensor([30, 0, 2, 2])
        )


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        ({"num_labels": 3}, torch.rand(4, 3).round()),
        ({"num_labels": 3, "problem_type": "regression"}, torch.arange(12.0).view(4, 3)),
        ({"num_labels": 2, "problem_type": "single_label_classification"}, torch.tensor([0, 1, 1, 0])),
        ({"num_labels": 3, "classifier_pooling": "cls"}, torch.tensor([0, 1, 2, 0])),
    ],
)
def test_what_kind_of_labels_they_are_decides_the_loss_as_in_transformers(changes, labels, folder_of, theirs):
    folder, inputs = folder_of(SEQUENCE, **changes), rows()
    models = ModernBERTForSequenceClassification.from_pretrained(folder), theirs(SEQUENCE, folder)
    ours, stock = (model(**inputs, labels=labels) for model in models)
    torch.testing.assert_close(ours.loss, stock.loss, atol=1e-5, rtol=1e-5)
    assert_same(ours.logits, stock.logits, inputs["attention_mask"])
    assert models[0].config.problem_type == models[1].config.problem_type


def test_several_numbers_are_learnt_here_and_refused_by_the_rest_of_the_package(folder_of):
    folder = folder_of(SEQUENCE, problem_type="regression")
    model = ModernBERTForSequenceClassification.from_pretrained(folder)
    assert model(**rows(), labels=torch.arange(12.0).view(4, 3)).loss > 0
    for refused in (model.task, lambda: load(folder)):
        with pytest.raises(UnsupportedError, match="a regression of 3 numbers"):
            refused()


def test_with_cls_pooling_the_first_real_token_is_read_wherever_padding_is(folder_of):
    model = ModernBERTForSequenceClassification.from_pretrained(folder_of(SEQUENCE, classifier_pooling="cls"))
    right, left = rows("right"), rows("left")
    left["input_ids"][left["attention_mask"].bool()] = right["input_ids"][right["attention_mask"].bool()]
    torch.testing.assert_close(model(**left).logits, model(**right).logits, atol=1e-4, rtol=1e-4)


def test_what_is_padding_does_not_matter(folder_of):
    model = ModernBERTForTokenClassification.from_pretrained(folder_of(TOKENS))
    inputs = rows()
    before = model(**inputs).logits
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7
    assert torch.equal(model(**inputs).logits, before) and (before[inputs["attention_mask"] == 0] == 0).all()
    inputs["attention_mask"][1] = 0  # a row without a token
    after = model(**inputs).logits
    assert (after[1] == 0).all()
    torch.testing.assert_close(after[0], before[0])


def test_sums_are_divided_by_the_number_of_labels_that_a_step_has(folder_of):
    model, inputs = ModernBERTForMaskedLM.from_pretrained(folder_of(MLM)), rows()
    targets = labels_of(MLM, inputs)
    num_labels = int((targets["labels"] != -100).sum())
    halves = [{k: v[part] for k, v in (inputs | targets).items()} for part in (slice(0, 2), slice(2, 4))]
    parts = [model(**half, num_items_in_batch=torch.tensor(num_labels)).loss for half in halves]
    torch.testing.assert_close(sum(parts), model(**inputs, **targets).loss)


def test_sparse_prediction_gives_the_labelled_tokens_alone(folder_of, theirs):
    folder, inputs = folder_of(MLM, sparse_prediction=True), rows()
    targets = labels_of(MLM, inputs)
    ours, stock = (m(**inputs, **targets) for m in (CLASSES[MLM].from_pretrained(folder), theirs(MLM, folder)))
    torch.testing.assert_close(ours.logits, stock.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.loss, stock.loss)


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"inputs_embeds": torch.zeros(1)}, UnsupportedError, "inputs_embeds"),
        ({"output_attentions": True}, UnsupportedError, "output_attentions=True"),
        ({"token_type_ids": torch.ones(4, 40)}, UnsupportedError, "token_type_ids"),
        ({"input_ids": torch.ones(40)}, DataError, r"\(40,\)"),
        ({"attention_mask": torch.ones(4, 39)}, UnsupportedError, "give .batch, length"),
        ({"attention_mask": torch.tensor([[1, 0] * 20] * 4)}, UnsupportedError, "20 runs of tokens; give"),
        ({"attention_mask": torch.zeros(4, 40)}, UnsupportedError, "without a single token; give"),
        ({"attention_mask": torch.eye(4, 40)}, None, None),
        ({"attention_mask": torch.ones(4, 40) * torch.tensor([[1], [0], [1], [1]])}, DataError, "1 of 4 rows"),
        ({"labels": torch.zeros(4)}, None, None),
        ({"labels": torch.zeros(3).long()}, ConfigError, "3 labels for 4 rows"),
        ({"labels": torch.zeros(4, 2)}, DataError, r"labels of \(4, 2\)"),
    ],
)
def test_what_is_not_computed_is_refused_in_a_line(changes, error, what, tiny_config):
    model = drawn(SEQUENCE, tiny_config, num_labels=1 if "labels" in changes and changes["labels"].dim() == 1 else 3)
    if what == "3 labels for 4 rows":
        model.config.problem_type = "single_label_classification"
    if error is None:
        assert model(**rows() | changes).logits.isfinite().all()
        return
    with pytest.raises(error, match=what) as raised:
        model(**rows() | changes)
    assert "\n" not in str(raised.value) and "restore" not in str(raised.value)


def test_labels_at_padding_are_refused(tiny_config):
    inputs = rows()
    with pytest.raises(DataError, match="87 labels at padding"):
        drawn(TOKENS, tiny_config)(**inputs, labels=torch.zeros_like(inputs["input_ids"]))
    full = inputs["input_ids"] % 3
    assert drawn(TOKENS, tiny_config)(inputs["input_ids"], labels=full, token_type_ids=full * 0).loss > 0


def test_an_output_is_a_dict_a_tuple_and_an_object(tiny_config):
    model = drawn(SEQUENCE, tiny_config)
    output = model(**rows())
    assert output.loss is None and output.hidden_states is None and output.attentions is None
    assert torch.equal(output[0], output.logits) and output["logits"] is output.logits and list(output) == ["logits"]
    loss, logits = model(**rows(), labels=torch.tensor([0, 1, 2, 0]), return_dict=False)
    assert loss.dim() == 0 and torch.equal(logits, output.logits)
    assert torch.equal(pickle.loads(pickle.dumps(output)).logits, output.logits)
    with pytest.raises(AttributeError, match="no pooler"):
        _ = output.pooler
    assert ModelOutput(loss=None, logits=1).to_tuple() == (1,)


@pytest.mark.parametrize("kind", CLASSES)
def test_folders_go_round(kind, tmp_path, folder_of, theirs):
    folder = folder_of(kind, **({"id2label": {0: "天气", 1: "b", 2: "c"}} if kind in (SEQUENCE, TOKENS) else {}))
    model, inputs = CLASSES[kind].from_pretrained(folder), rows()
    expected = model(**inputs)[0]
    assert load(folder).architecture == kind and load(folder).tokenizer is not None
    stock = theirs(kind, folder)
    stock.save_pretrained(tmp_path / "stock")
    again = CLASSES[kind].from_pretrained(tmp_path / "stock")
    assert torch.equal(again(**inputs)[0], expected)
    if kind in (SEQUENCE, TOKENS):
        assert stock.config.id2label == again.config.id2label == {0: "天气", 1: "b", 2: "c"}
    batches = load(folder).state_dict()
    assert {n: t.shape for n, t in batches.items()} == {n: t.shape for n, t in model.state_dict().items()}


@pytest.mark.parametrize("kind", [SEQUENCE, TOKENS, QA])
def test_a_head_that_a_checkpoint_lacks_is_drawn_and_said(kind, folder_of, caplog):
    folder = folder_of(MLM)
    torch.manual_seed(3)
    with caplog.at_level(logging.WARNING):
        models = [CLASSES[kind].from_pretrained(folder, **({} if kind == QA else {"num_labels": 5})) for _ in range(2)]
    assert len(caplog.messages) == 2 and "classifier.bias, classifier.weight" in caplog.messages[0]
    assert len(models[0].classifier.weight) == (2 if kind == QA else 5)
    assert models[0].classifier.weight.std() > 0.05 and not torch.equal(*(m.classifier.weight for m in models))
    torch.manual_seed(3)
    assert torch.equal(CLASSES[kind].from_pretrained(folder, num_labels=len(models[0].classifier.weight)).classifier.weight,
                       models[0].classifier.weight)  # fmt: skip
    stored = CLASSES[MLM].from_pretrained(folder).state_dict()
    taken = models[0].state_dict()
    assert all(torch.equal(taken[name], stored[name]) for name in taken if name in stored)
    assert sum(name in stored for name in taken) == len(taken) - 2


def test_a_head_of_other_labels_is_refused_unless_a_new_one_is_asked_for(folder_of, caplog):
    folder = folder_of(TOKENS)
    with pytest.raises(CheckpointError, match=r"classifier\.weight has 3 rows and 7 are asked for"):
        ModernBERTForTokenClassification.from_pretrained(folder, num_labels=7)
    model = ModernBERTForTokenClassification.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)
    assert model.num_labels == 7 and "newly drawn" in caplog.text
    with pytest.raises(CheckpointError, match=r"classifier\.weight has 3 rows and 2 are asked for"):
        ModernBERTForQuestionAnswering.from_pretrained(folder)
    with pytest.raises(ConfigError, match="num_labels=3 for question answering"):
        ModernBERTForQuestionAnswering.from_pretrained(folder, num_labels=3)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_label": 3}, "num_label=3 is no setting"),
        ({"attention_dropout": 0.1}, "only classifier_dropout"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels=3 and 1 label names"),
        ({"id2label": {0: "a", 2: "b"}}, "without a gap"),
        ({"id2label": {0: "a"}, "label2id": {"b": 0}}, "disagree"),
        ({"problem_type": "multi"}, "problem_type='multi'"),
        ({"torch_dtype": "int8"}, "give torch.float32"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, what, folder_of):
    with pytest.raises(ConfigError, match=what) as raised:
        ModernBERTForSequenceClassification.from_pretrained(folder_of(MLM), **changes)
    assert "\n" not in str(raised.value)


def test_a_config_has_the_keys_of_its_file_as_attributes(folder_of):
    folder = folder_of(SEQUENCE, label2id={"x": 1, "y": 0, "z": 2}, num_labels=3)
    config = ModernBERTConfig.from_pretrained(folder, problem_type="multi_label_classification")
    assert (config.num_labels, config.id2label, config.label2id["x"]) == (3, {0: "y", 1: "x", 2: "z"}, 1)
    assert (config.hidden_size, config.model_type, config.pad_token_id) == (32, "modernbert", config.shape.pad_token_id)
    with pytest.raises(ConfigError, match="hidden_size is fixed"):
        config.hidden_size = 64
    model = ModernBERTForSequenceClassification.from_pretrained(folder, config=config)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}  # after loading, as many do
    model.save_pretrained(folder)
    again = ModernBERTConfig.from_pretrained(folder)
    assert (again.label2id, again.problem_type) == ({"a": 0, "b": 1, "c": 2}, "multi_label_classification")
    assert config.id2label[0] == "y"
    with pytest.raises(ConfigError, match="hiden_size is no setting"):
        ModernBERTConfig(hiden_size=3)


def test_saving_leaves_what_else_is_in_the_folder(folder_of, tmp_path):
    folder = folder_of(SEQUENCE)
    model = ModernBERTForSequenceClassification.from_pretrained(folder)
    tokenizer = ModernBERTTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "out")  # before the model, whose own tokenizer lacks the new token
    (tmp_path / "out" / "notes.txt").write_text("kept")
    model.save_pretrained(tmp_path / "out")
    assert len(ModernBERTTokenizer.from_pretrained(tmp_path / "out")) == len(tokenizer) == 321
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"notes.txt", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert load(tmp_path / "out").config.vocab_size == 321


def test_other_weights_can_be_saved_and_unknown_arguments_cannot(folder_of, tmp_path):
    model = ModernBERTForSequenceClassification.from_pretrained(folder_of(SEQUENCE))
    others = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out", state_dict=others, is_main_process=True, safe_serialization=True)
    again = ModernBERTForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], others[name]) for name in others)
    wrapped = {f"module.{name}": tensor for name, tensor in others.items()}
    for arguments, what in (
        ({"push_to_hub": True}, r"save_pretrained\(push_to_hub=…\) is not known here"),
        ({"statedict": others}, "statedict"),
        ({"state_dict": others | {"pooler.weight": torch.ones(1)}}, r"has pooler\.weight of \(1,\)"),
        ({"state_dict": others | {"classifier.bias": torch.ones(0)}}, r"has classifier\.bias of \(0,\)"),
        ({"state_dict": wrapped}, r"state_dict lacks classifier\.bias"),
    ):
        with pytest.raises(ConfigError, match=what) as raised:
            model.save_pretrained(tmp_path / "none", **arguments)
        assert "\n" not in str(raised.value) and not (tmp_path / "none").exists()


@pytest.mark.parametrize("open_folder", [load, ModernBERTModel.from_pretrained], ids=["load", "from_pretrained"])
def test_tensors_are_named_and_a_decoder_is_checked_whichever_way_a_folder_is_opened(open_folder, folder_of):
    folder = folder_of(MLM)
    stored = hub.read_tensors(folder)
    embedding = stored["model.embeddings.tok_embeddings.weight"]
    bare = {name.removeprefix("model."): tensor for name, tensor in stored.items() if name.startswith("model.")}
    for tensors in ({**stored, "decoder.weight": embedding.clone()}, bare):
        save_file(tensors, folder / hub.WEIGHTS)
        assert torch.equal(open_folder(folder).state_dict()["model.embeddings.tok_embeddings.weight"], embedding)
    save_file({**stored, "decoder.weight": embedding + 1}, folder / hub.WEIGHTS)
    with pytest.raises(UnsupportedError, match=r"decoder\.weight differs from the embedding"):
        open_folder(folder)


def test_the_front_door_lists_what_it_opens_when_asked():
    import modernbert

    seven = {kind.__name__ for kind in (*CLASSES.values(), ModernBERTConfig, ModernBERTTokenizer)}
    assert len(seven) == 7 and seven <= set(dir(modernbert)) and seven <= set(modernbert.__all__)
    assert modernbert.ModernBERTModel is ModernBERTModel
    with pytest.raises(AttributeError, match="ModernBERTForNothing"):
        _ = modernbert.ModernBERTForNothing


@pytest.mark.slow
def test_a_type_checker_knows_the_classes_behind_the_front_door(tmp_path):
    pytest.importorskip("mypy")
    code = tmp_path / "code.py"
    code.write_text(
        "import modernbert\nreveal_type(modernbert.ModernBERTModel)\nreveal_type(modernbert.ModernBERTTokenizer)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", str(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bert.ModernBERTModel" in done.stdout and "bert_tokenizer.ModernBERTTokenizer" in done.stdout, done.stdout


def test_more_tokens_leave_the_old_ones_as_they_are(folder_of):
    model, inputs = ModernBERTForMaskedLM.from_pretrained(folder_of(MLM)), rows()
    before = model(**inputs).logits
    assert model.resize_token_embeddings(330, pad_to_multiple_of=64).num_embeddings == 384
    after = model(**inputs).logits
    assert after.shape[2] == 384 == model.config.vocab_size
    torch.testing.assert_close(after[..., :320], before)
    inputs["input_ids"][0, 0] = 383
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)).loss.backward()
    assert model.get_input_embeddings().weight.grad[383].abs().sum() > 0


def test_checkpointed_layers_give_the_same_gradients(tiny_config):
    gradients = []
    for checkpointed in (False, True):
        model, inputs = drawn(TOKENS, tiny_config), rows()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(**inputs, **labels_of(TOKENS, inputs), output_hidden_states=True).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_rest_of_the_package_takes_the_same_weights(folder_of):
    folder = folder_of(SEQUENCE, id2label={0: "a", 1: "b", 2: "c"})
    model, tokenizer = (
        ModernBERTForSequenceClassification.from_pretrained(folder),
        ModernBERTTokenizer.from_pretrained(folder),
    )
    texts = ["The old house.", "a quiet river sings under the stone"]
    model.config.id2label = {0: "x", 1: "y", 2: "z"}
    answers = model.task().predict(texts)
    found = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(1).max(1)
    assert [answer["label"] for answer in answers] == [model.config.id2label[i] for i in found.indices.tolist()]
    torch.testing.assert_close(torch.tensor([answer["score"] for answer in answers]), found.values)
    assert model.task().classifier.weight is model.classifier.weight
    assert ModernBERTForTokenClassification.from_pretrained(folder_of(TOKENS)).task().predict(["the old house"])
    question = {"question": "Where?", "context": "The old house. A quiet river."}
    assert ModernBERTForQuestionAnswering.from_pretrained(folder_of(QA)).task().predict([question])
    filling = ModernBERTForMaskedLM.from_pretrained(folder_of(MLM)).task()
    assert isinstance(filling, MaskedLM) and filling.fill_mask("the [MASK] house")


def test_half_precision_weights_are_near(folder_of):
    folder, inputs = folder_of(SEQUENCE), rows()
    full, half = (CLASSES[SEQUENCE].from_pretrained(folder, torch_dtype=t) for t in ("auto", "bfloat16"))
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(half(**inputs).logits.float(), full(**inputs).logits, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("kind", [MLM, SEQUENCE, TOKENS, QA])
def test_a_plain_loop_learns(kind, tiny_config):
    model, inputs = drawn(kind, tiny_config).train(), rows()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        targets = labels_of(kind, inputs)
        if kind == QA:
            targets["end_positions"] = targets["start_positions"]
        loss = model(**inputs, **targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", [MLM, SEQUENCE, TOKENS, QA])
def test_the_trainer_of_transformers_trains_it(kind, folder_of, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5")
    pytest.importorskip("accelerate")
    folder = folder_of(kind)
    model, tokenizer = CLASSES[kind].from_pretrained(folder), ModernBERTTokenizer.from_pretrained(folder)
    columns = tokenizer(["The old stone house.", "a river", "evening light over the forest", "child"] * 2)
    examples = [{name: column[i] for name, column in columns.items()} | {"unused": "x"} for i in range(8)]
    collate = transformers.DataCollatorWithPadding(tokenizer)
    for i, example in enumerate(examples):
        example |= {SEQUENCE: {"labels": i % 3}, QA: {"start_positions": 1, "end_positions": 2}}.get(kind, {})
        if kind == TOKENS:
            example["labels"] = [-100, *[i % 3] * (len(example["input_ids"]) - 2), -100]
    if kind == TOKENS:
        collate = transformers.DataCollatorForTokenClassification(tokenizer)
    if kind == MLM:
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path / "run", max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        report_to=[], disable_tqdm=True, use_cpu=True, eval_strategy="steps", eval_steps=2, save_steps=2, logging_steps=1,
    )  # fmt: skip
    before = model.model.layers[1].attn.Wqkv.weight.clone()
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collate,
        processing_class=tokenizer,
    )
    found = trainer.train()
    assert found.global_step == 2 and torch.tensor(found.training_loss).isfinite()
    assert not torch.equal(model.model.layers[1].attn.Wqkv.weight, before)
    assert any("eval_loss" in row for row in trainer.state.log_history)
    if kind != MLM:
        predictions = trainer.predict(examples[:3]).predictions
        assert len(predictions[0] if kind == QA else predictions) == 3
    saved = tmp_path / "run" / "checkpoint-2"
    assert (saved / "tokenizer.json").exists() and (saved / "model.safetensors").exists()


def test_the_trainer_s_folders_open_as_the_page_says(folder_of, tmp_path, monkeypatch):
    pytest.importorskip("transformers", minversion="5")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    page = (Path(__file__).parents[2] / "docs" / "bert-style.md").read_text(encoding="utf-8")
    section = page.split("## A loop of one's own, or the `Trainer`")[1].split("\n## ")[0]
    folder = folder_of(MLM)
    names = {
        "torch": torch, "encoder": folder, "tokenizer": ModernBERTTokenizer.from_pretrained(folder),
        "ModernBERTForSequenceClassification": ModernBERTForSequenceClassification,
    }  # fmt: skip
    for block in section.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    inputs = names["tokenizer"](["a lovely film", "dull"], padding=True, return_tensors="pt")
    expected = names["model"].eval().cpu()(**inputs).logits
    for name in ("trained", "run/checkpoint-2", "run"):
        assert load(tmp_path / name).predict(["a lovely film"])
        again = ModernBERTForSequenceClassification.from_pretrained(tmp_path / name)
        assert torch.equal(again(**inputs).logits, expected)
    assert not torch.equal(ModernBERTForSequenceClassification.from_pretrained("mine")(**inputs).logits, expected)


ARTICLE = Path(__file__).parents[2] / "examples" / "article.py"


def test_the_snippet_of_the_article_runs(folder_of, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ARTICLE), str(folder_of(SEQUENCE))])
    runpy.run_path(str(ARTICLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("LABEL_" in line for line in lines)


@pytest.mark.slow
def test_the_snippet_of_the_article_runs_without_transformers(folder_of):
    code = (
        "import runpy, sys\nsys.modules['transformers'] = None\n"
        f"sys.argv = ['article.py', {str(folder_of(SEQUENCE))!r}]\nrunpy.run_path({str(ARTICLE)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LABEL_") == 2
