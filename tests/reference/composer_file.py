"""A checkpoint as Composer and the reference trainer write one, names and objects included, without either installed."""

import collections
import datetime
import json

import numpy as np
import torch

# AnswerDotAI/ModernBERT, src/bert_layers: FlexBertForMaskedLM inside composer's HuggingFaceModel.
_RENAMED = {"model.layers.": "bert.encoder.layers.", "model.": "bert."}

# Its configuration for ModernBERT, less what tensors tell (JHU-CLSP/ettin-encoder-vs-decoder, encoder_base.yaml).
MODEL_CONFIG = {
    "attention_layer": "rope", "attn_out_bias": False, "attn_out_dropout_prob": 0.1, "attn_qkv_bias": False,
    "bert_layer": "prenorm", "embed_norm": True, "final_norm": True, "skip_first_prenorm": True,
    "embedding_layer": "sans_pos", "loss_function": "fa_cross_entropy", "loss_kwargs": {"reduction": "mean"},
    "mlp_in_bias": False, "mlp_layer": "glu", "mlp_out_bias": False, "normalization": "layernorm",
    "norm_kwargs": {"eps": 1e-5, "bias": False}, "hidden_act": "gelu", "head_pred_act": "gelu", "padding": "unpadded",
    "rotary_emb_dim": None, "rotary_emb_base": 10000.0, "rotary_emb_scale_base": None, "rotary_emb_interleaved": False,
    "global_attn_every_n_layers": 3, "unpad_embeddings": True, "compile_model": True, "masked_prediction": True,
}  # fmt: skip


class Trainer:
    """Stands for objects of libraries that the reader does not have."""


def stored_config(config, **changes):
    """What `FlexBertConfig.save_pretrained` leaves in a checkpoint: BertConfig's 512 positions among it."""
    return {
        **MODEL_CONFIG, "model_type": "bert", "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "sliding_window": config.local_attention,
        "local_attn_rotary_emb_base": -1, "max_position_embeddings": 512, **changes,
    }  # fmt: skip


def names_of_the_trainer(state, prefix="model."):
    """Published names -> the trainer's, the tied decoder's matrix among them."""
    renamed = collections.OrderedDict()
    for name, tensor in {**state, "decoder.weight": state["model.embeddings.tok_embeddings.weight"]}.items():
        start = next((start for start in _RENAMED if name.startswith(start)), "")
        renamed[prefix + (_RENAMED[start] + name.removeprefix(start) if start else name)] = tensor
    return renamed


def write(path, model, *, config=None, tokenizer=None, prefix="model.", tokens=123_456_789):
    """Write `model` (a MaskedLM) as a checkpoint with optimizer, clock, metrics and random state."""
    integrations = {}
    if config is not None:
        stored = {"config": {"file_extension": ".json", "content": config, "class": "src.bert_layers.model"}}
        entries = tokenizer and {"tokenizer": {"file_extension": ".json", "content": json.loads(tokenizer.to_str())}}
        integrations = {"huggingface": {"model": stored, "tokenizer": entries or {}}}
    clock = {"epoch": 0, "batch": 25, "token": tokens, "total_wct": datetime.timedelta(hours=3)}
    first = next(iter(model.parameters())).detach()
    torch.save(
        {
            "state": {
                "model": names_of_the_trainer(model.state_dict(), prefix),
                "optimizers": {"StableAdamW": {"state": {"bert": {"exp_avg": torch.zeros_like(first)}}}},
                "timestamp": {"Timestamp": clock},
                "train_metrics": {"MaskedAccuracy": Trainer()},
                "integrations": integrations,
                "metadata": {"torch_version": torch.__version__, "trainer": Trainer()},
            },
            "rng": [{"numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state()}],
        },
        path,
    )
    return path
