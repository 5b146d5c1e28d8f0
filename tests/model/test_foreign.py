"""A model that pads gives through packed batches what it gives by itself."""

import pytest
import torch

from modernbert.batch import Feature, PackedBatch, pack_features
from modernbert.errors import CheckpointError, UnsupportedError
from modernbert.model.config import ModernBertConfig
from modernbert.model.foreign import ForeignEncoder, groups_of_like_length
from modernbert.tasks.classify import Classifier
from modernbert.tasks.head import HeadSettings

transformers = pytest.importorskip("transformers")

PAD, SEP = 1, 3
SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "pad_token_id": PAD,
}  # fmt: skip
DEBERTA = {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SHAPE, max_position_embeddings=64),
    "deberta-v2": lambda: transformers.DebertaV2Config(**SHAPE, **DEBERTA),
    "roberta": lambda: transformers.RobertaConfig(**SHAPE, max_position_embeddings=66, type_vocab_size=1),
    "electra": lambda: transformers.ElectraConfig(**SHAPE, embedding_size=16, max_position_embeddings=64),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=48, pad_token_id=PAD, max_position_embeddings=64
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SHAPE, max_position_embeddings=64, local_attention=8, bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3,
    ),
}  # fmt: skip
ROWS = [[2, *range(10, 31), SEP], [2, 11, SEP, 12, 13, SEP], [2, SEP], [2, 40, 41, SEP, 42, SEP]]
SEGMENTS = [[0] * 23, [0, 0, 0, 1, 1, 1], [0, 0], [0, 0, 0, 0, 1, 1]]


@pytest.fixture(params=CONFIGS)
def stock(request):
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(CONFIGS[request.param]()).eval()


def padded_by_hand(model):
    longest = max(map(len, ROWS))
    inputs = {
        "input_ids": torch.tensor([row + [PAD] * (longest - len(row)) for row in ROWS]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ROWS]),
    }
    if model.config.model_type in ("bert", "electra"):
        inputs["token_type_ids"] = torch.tensor([row + [0] * (longest - len(row)) for row in SEGMENTS])
    hidden = model(**inputs).last_hidden_state
    return torch.cat([rows[: len(row)] for rows, row in zip(hidden, ROWS, strict=True)])


@pytest.mark.parametrize("gradients", [True, False])
def test_packed_and_padded_hidden_states_are_the_same(stock, gradients):
    encoder, batch = ForeignEncoder(stock, sep_token_id=SEP), PackedBatch.from_sequences(ROWS)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(encoder(batch), padded_by_hand(stock), atol=2e-5, rtol=1e-4)


def test_a_head_on_any_encoder_trains_encoder_and_head(stock):
    encoder = ForeignEncoder(stock, sep_token_id=SEP)
    settings = HeadSettings(kind="classify", labels=("a", "b"), problem="single", max_length=64)
    task = Classifier(encoder.config, None, settings, encoder=encoder)
    features = [Feature(ids_T=torch.tensor(row).int().numpy(), target=i % 2) for i, row in enumerate(ROWS)]
    task.train()(pack_features(features)).loss_sum.backward()
    layer = task.encoder.layers[0]
    assert len(task.encoder.layers) == 2
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in layer.named_parameters() if "key.bias" not in n
    )
    assert task.device == torch.device("cpu") and task.classifier.weight.grad is not None


def test_dropout_is_the_models_own_while_training():
    torch.manual_seed(0)
    encoder = ForeignEncoder(transformers.AutoModel.from_config(CONFIGS["bert"]()), sep_token_id=SEP).train()
    batch = PackedBatch.from_sequences(ROWS)
    assert not torch.equal(encoder(batch), encoder(batch))
    assert torch.equal(encoder.eval()(batch), encoder(batch))


def test_a_layer_computed_twice_gives_the_same_gradients():
    torch.manual_seed(0)
    stock = transformers.AutoModel.from_config(CONFIGS["bert"](), attn_implementation="eager").train()
    encoder, batch = ForeignEncoder(stock, sep_token_id=SEP), PackedBatch.from_sequences(ROWS)
    found = []
    for wanted in (False, True):
        encoder.checkpoint_layers = wanted
        assert encoder.checkpoint_layers is wanted
        encoder.zero_grad()
        torch.manual_seed(1)
        encoder(batch).square().sum().backward()
        found.append(encoder.layers[0].attention.self.query.weight.grad.clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("name", "positions"), [("bert", 64), ("roberta", 64), ("modernbert", 64), ("deberta-v2", 64)])
def test_positions_are_those_that_a_text_may_have(name, positions):
    stock = transformers.AutoModel.from_config(CONFIGS[name]()).eval()
    encoder = ForeignEncoder(stock, sep_token_id=SEP)
    assert encoder.config.max_position_embeddings == positions
    encoder(PackedBatch.from_sequences([[2, *[10] * (positions - 2), SEP]]))


def test_what_is_no_encoder_is_refused():
    t5 = transformers.T5Config(vocab_size=60, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedError, match="no encoder"):
        ForeignEncoder(transformers.AutoModel.from_config(t5), sep_token_id=SEP)


def test_the_stand_in_config_is_never_read_as_a_modernbert():
    encoder = ForeignEncoder(transformers.AutoModel.from_config(CONFIGS["bert"]()), sep_token_id=SEP)
    values = encoder.config.replace(hidden_size=64).to_dict("ModernBertForSequenceClassification")
    assert values["model_type"] == "bert-with-modernbert-head"
    with pytest.raises(CheckpointError, match="only 'modernbert'"):
        ModernBertConfig.from_dict(values)


def test_groups_are_of_like_length_and_hold_every_text_once():
    lengths = [5, 400, 7, 6, 30, 1, 8]
    groups = list(groups_of_like_length(lengths, 40))
    assert sorted(place for group in groups for place in group) == list(range(7))
    assert all(len(group) == 1 or len(group) * max(lengths[p] for p in group) <= 40 for group in groups)
    assert groups[0] == [1]
