"""Competitors are what they are called, see the same texts, and are padded right."""

import pytest
import torch

from modernbert import PRESETS
from modernbert.errors import ConfigError
from modernbert.evaluate.peers import OURS, PEERS, compete, padded, peer, positions_of_bert, shape_of
from modernbert.model.encoder import Encoder
from modernbert.runtime import Runtime


@pytest.fixture(scope="module")
def runtime():
    return Runtime.detect(device="cpu", num_threads=1)


def on_meta(name, **arguments):
    with torch.device("meta"):
        return peer(name, PRESETS["base"], **arguments)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_deberta_is_v3_base_and_not_the_config_classs_default():
    deberta = on_meta("deberta")
    per_layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert parameters(deberta) == 128100 * 768 + 2 * 768 + 12 * per_layer + 512 * 768 + 2 * 768  # 184 M
    config = deberta.config
    assert (config.position_buckets, config.relative_attention, config.share_att_key) == (256, True, True)
    assert config.pos_att_type == ["p2c", "c2p"] and not config.position_biased_input
    assert (config.num_attention_heads, config.intermediate_size) == (12, 3072)


def test_bert_is_bert_base_without_a_pooler():
    assert parameters(on_meta("bert")) == 108_891_648
    assert on_meta("bert").config._attn_implementation == "sdpa" and on_meta("bert").pooler is None


@pytest.mark.parametrize(("longest", "positions"), [(30, 512), (512, 512), (2048, 8192), (8192, 8192)])
def test_bert_has_the_positions_that_the_load_needs(longest, positions):
    assert positions_of_bert(longest) == positions
    assert on_meta("bert", longest=longest).embeddings.position_embeddings.num_embeddings == positions


def test_transformers_has_our_shape_and_sdpa():
    theirs = on_meta("transformers")
    with torch.device("meta"):
        assert parameters(theirs) == parameters(Encoder(PRESETS["base"])) == 149_014_272
    assert theirs.config._attn_implementation == "sdpa"


def test_nothing_is_masked_where_nothing_is_padded():
    assert set(padded([[1, 2, 3], [4, 5, 6]])) == {"input_ids"}
    found = padded([[1, 2, 3], [4]])
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert found["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]


@pytest.mark.parametrize("name", [OURS, *PEERS, "accelerated"])
def test_a_text_is_encoded_the_same_beside_others(name, runtime):
    competitor = compete(name, "tiny", runtime, longest=512, quick=True)
    assert not competitor.module.training
    rows = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15]]
    with torch.inference_mode():
        together = competitor.prepare(rows, runtime.device)()
        alone = [competitor.prepare([row], runtime.device)() for row in rows]
    if name == OURS:
        torch.testing.assert_close(together, torch.cat(alone))
    else:
        assert together.shape == (3, 7, 64)
        for padded_LD, (row,) in zip(together, alone, strict=True):
            torch.testing.assert_close(padded_LD[: len(row)], row, atol=1e-5, rtol=1e-4)


def test_weights_take_the_runtimes_dtype_and_rotary_frequencies_stay():
    runtime = Runtime.detect(device="cpu", precision="bfloat16", num_threads=1)
    module = compete("transformers", "tiny", runtime, longest=512, quick=True).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}


def test_an_unknown_competitor_is_refused(runtime):
    with pytest.raises(ConfigError, match="choose among transformers, bert, deberta, accelerated"):
        compete("roberta", "tiny", runtime, longest=512)


def test_a_shape_is_a_presets_or_a_checkpoints(tiny_model, tiny_config, tmp_path):
    assert shape_of("large") == PRESETS["large"]
    assert shape_of(str(tiny_model.save(tmp_path / "model"))).hidden_size == tiny_config.hidden_size
