"""A larger model that starts as a smaller one: in width it computes the same, and its copies can part."""

import itertools
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert import MaskedLM, PackedBatch
from modernbert.errors import CheckpointError
from modernbert.model.tile import layers_from, tile, tiled_tensors
from modernbert.text import train_tokenizer

BATCH = PackedBatch.from_sequences([[3, 40, 41, 42, 77, 4], [3, 99, 4], list(range(100, 140))])


@pytest.fixture(scope="module")
def small(tiny_config, tiny_tokenizer):
    """Drawn wide, so that every part is heard in the scores; norms and biases are told apart too."""
    model = MaskedLM(tiny_config.replace(initializer_range=0.2), tiny_tokenizer).draw(1).eval()
    draw = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)
    return model


def enlarged(small, seed=0, **changes):
    config = small.config.replace(**changes)
    model = MaskedLM(config).eval()
    model.load_state_dict(tile(small.state_dict(), small.config, config, seed=seed))  # strict: every tensor, no other
    return model


@torch.inference_mode()
def scores(model):
    return model.logits(BATCH)


@pytest.mark.parametrize("times", [2, 3])
def test_a_model_some_times_as_wide_gives_the_same_scores(small, times):
    wide = enlarged(small, hidden_size=32 * times, num_attention_heads=2 * times, intermediate_size=48 * times)
    torch.testing.assert_close(scores(wide), scores(small), atol=1e-3, rtol=1e-3)


def test_more_of_the_inner_width_alone_gives_the_same_scores(small):
    torch.testing.assert_close(scores(enlarged(small, intermediate_size=77)), scores(small), atol=1e-3, rtol=1e-3)


def test_half_as_wide_again_is_close(small):
    wide = enlarged(small, hidden_size=48, num_attention_heads=3, intermediate_size=72)
    plain = scores(small)
    assert (scores(wide) - plain).norm() < 0.5 * plain.norm()  # norms weigh what there is two of twice


def test_the_same_shape_is_the_same_model(small):
    result = tile(small.state_dict(), small.config, small.config)
    assert result.keys() == small.state_dict().keys()
    assert all(torch.equal(result[name], tensor) for name, tensor in small.state_dict().items())


def test_copies_get_gradients_of_their_own(small):
    """Plain copies would stay copies for ever."""
    wide = enlarged(small, hidden_size=64, num_attention_heads=4, intermediate_size=96).train()
    batch = PackedBatch.from_sequences([[3, 40, 41, 4]], [[-100, 50, -100, -100]])
    wide(batch).loss_sum.backward()
    for name in ("mlp.Wi", "attn.Wqkv", "mlp.Wo"):
        gradient = wide.get_parameter(f"model.layers.1.{name}.weight").grad
        rows = gradient.chunk({"mlp.Wi": 2, "attn.Wqkv": 3, "mlp.Wo": 1}[name])[0]
        half = len(rows) // 2
        first, second = rows[:half], rows.roll(-half, 0)[:half]
        assert (first - second).norm() > 0.05 * first.norm(), name


def test_the_noise_between_copies_is_the_seeds(small):
    wider = {"intermediate_size": 96}
    one, same, other = (enlarged(small, seed=seed, **wider).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.layers.0.mlp.Wo.weight"], other["model.layers.0.mlp.Wo.weight"])


def test_heads_are_copied_as_wholes_and_q_k_and_v_by_themselves(small):
    """Three heads of two: each third of the larger matrix holds whole heads of the same third."""
    before = small.state_dict()["model.layers.1.attn.Wqkv.weight"].view(3, 2, 16, 32)
    config = small.config.replace(hidden_size=48, num_attention_heads=3, intermediate_size=48)
    after = tile(small.state_dict(), small.config, config)["model.layers.1.attn.Wqkv.weight"].view(3, 3, 16, 48)
    once = [column for column in range(48) if 16 <= column < 32]  # columns there is one of: 8 + 32 + 8
    for part in range(3):
        for head, source in enumerate((0, 1, 0)):
            assert torch.equal(after[part, head][:, once], before[part, source][:, [c - 8 for c in once]])


def test_tokens_the_smaller_model_does_not_know_are_never_its_answer(small):
    more = enlarged(small, vocab_size=384)
    probs = scores(more).softmax(-1)
    assert probs[:, 320:].sum(-1).max() < 0.3  # padding rows score no better than the least likely by their bias
    assert torch.equal(
        more.state_dict()["model.embeddings.tok_embeddings.weight"][:320],
        small.state_dict()["model.embeddings.tok_embeddings.weight"],
    )
    assert enlarged(more, vocab_size=320).config.vocab_size == 320


# Depth


@settings(max_examples=60, deadline=None)
@given(small_depth=st.integers(1, 30), more=st.integers(0, 30), every=st.integers(1, 4), large_every=st.integers(1, 4))
def test_layers_never_run_past_the_end_and_keep_their_kind(tiny_config, small_depth, more, every, large_every):
    small = tiny_config.replace(num_hidden_layers=small_depth, global_attn_every_n_layers=every)
    large = tiny_config.replace(num_hidden_layers=small_depth + more, global_attn_every_n_layers=large_every)
    sources = layers_from(small, large)
    assert len(sources) == small_depth + more and min(sources) >= 0 and max(sources) < small_depth
    for layer, source in enumerate(sources):
        if large.layer_types[layer] in small.layer_types:
            assert small.layer_types[source] == large.layer_types[layer]
    for kind in set(large.layer_types) & set(small.layer_types):
        of_kind = [source for source, own in zip(sources, large.layer_types, strict=True) if own == kind]
        assert of_kind == sorted(of_kind)
    if more == 0 and every == large_every:
        assert sources == [*range(small_depth)]


def test_the_presets_map_onto_each_other_by_depth(tiny_config):
    depths = [tiny_config.replace(num_hidden_layers=n) for n in (7, 10, 22, 28)]
    assert layers_from(depths[0], depths[1]) == [0, 1, 2, 3, 2, 4, 3, 5, 5, 6]
    for one, other in itertools.pairwise(depths):
        sources = layers_from(one, other)
        assert sources[0] == 0 and sorted(set(sources)) == [*range(one.num_hidden_layers)]  # none is left out


def test_a_layer_that_repeats_the_first_gets_the_embeddings_norm(small):
    deep = enlarged(small, num_hidden_layers=6)
    sources = layers_from(small.config, deep.config)
    repeats = [layer for layer, source in enumerate(sources) if layer and source == 0]
    assert repeats
    norm = small.state_dict()["model.embeddings.norm.weight"]
    for layer in repeats:
        assert torch.equal(deep.state_dict()[f"model.layers.{layer}.attn_norm.weight"], norm)
    assert torch.isfinite(scores(deep)).all()


def test_biases_are_enlarged_too(tiny_config):
    biased = tiny_config.replace(attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True)
    small = MaskedLM(biased).draw(1).eval()
    draw = torch.Generator().manual_seed(2)
    for parameter in small.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    wide = enlarged(small, hidden_size=64, num_attention_heads=4, intermediate_size=96)
    torch.testing.assert_close(scores(wide), scores(small), atol=1e-2, rtol=1e-2)


# From a folder


@pytest.fixture
def folder(tmp_path, small):
    return small.save(tmp_path / "small")


def test_a_folder_or_a_run_is_tiled(tmp_path, folder, small, tiny_tokenizer):
    config = small.config.replace(intermediate_size=96, num_hidden_layers=4)
    tensors = tiled_tensors(folder, config, tokenizer=tiny_tokenizer)
    MaskedLM(config).load_state_dict(tensors)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "stable-00000007")
    again = tiled_tensors(tmp_path / "run", config)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": 64, "num_attention_heads": 2}, "heads of 16 and the larger model of 32"),
        ({"num_hidden_layers": 2}, "num_hidden_layers=3 exceeds 2"),
        ({"hidden_size": 16, "num_attention_heads": 1}, "hidden_size=32 exceeds 16"),
        ({"intermediate_size": 40}, "intermediate_size=48 exceeds 40"),
        ({"vocab_size": 256}, "320 ids and the larger model 256 rows"),
        ({"mlp_bias": True}, "mlp_bias=False"),
        ({"local_attention": 16}, "local_attention=8, and 16 in the larger model.*set model.local_attention=8"),
        ({"global_attn_every_n_layers": 2}, "set model.global_attn_every_n_layers=3"),
        ({"global_rope_theta": 10_000.0}, "set phases.0.global_rope_theta=160000.0"),
        ({"local_rope_theta": 500.0}, "set phases.0.local_rope_theta=10000.0"),
    ],
)
def test_what_cannot_be_enlarged_is_refused(folder, small, changes, part):
    with pytest.raises(CheckpointError, match=part) as refusal:
        tiled_tensors(folder, small.config.replace(**changes))
    assert "\n" not in str(refusal.value)


def test_another_tokenizer_is_refused(folder, small):
    words = [f"{a}{b}" for a in "bcdfgklmnp" for b in ("ark", "end", "ill", "ump", "osty")]
    other = train_tokenizer([f"{word} and {word}" for word in words], vocab_size=320)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        tiled_tensors(folder, small.config, tokenizer=other)


def test_without_a_tokenizer_vocabularies_must_be_of_one_size(folder, small):
    (folder / "tokenizer.json").unlink()
    assert tiled_tensors(folder, small.config)
    with pytest.raises(CheckpointError, match=r"no tokenizer.*put its tokenizer\.json there"):
        tiled_tensors(folder, small.config.replace(vocab_size=384))


def test_a_model_without_an_mlm_head_is_refused(folder, small):
    path = Path(folder, "model.safetensors")
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({n: t for n, t in tensors.items() if n.startswith("model.")}, path)
    with pytest.raises(CheckpointError, match="no masked language model"):
        tiled_tensors(folder, small.config)
