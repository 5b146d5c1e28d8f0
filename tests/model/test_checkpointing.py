"""Activation checkpointing: the same gradients to the bit, for less memory and each layer computed twice."""

import contextlib

import pytest
import torch

from modernbert import PRESETS, MaskedLM, PackedBatch

CONFIG = PRESETS["tiny"].replace(vocab_size=128, num_hidden_layers=4)
LENGTHS = [70, 150, 3, 37]


def model(*, checkpoint_layers, out_dropout=0.0):
    task = MaskedLM(CONFIG, out_dropout=out_dropout).draw(0)
    task.encoder.checkpoint_layers = checkpoint_layers
    return task.train()


def batch():
    documents = [[(7 * i + length) % 128 for i in range(length)] for length in LENGTHS]
    labels = [[token if i % 3 == 0 else -100 for i, token in enumerate(document)] for document in documents]
    return PackedBatch.from_sequences(documents, labels)


def gradients_of(task, autocast=None):
    torch.manual_seed(5)
    with autocast or contextlib.nullcontext():
        loss = task(batch()).loss_sum
    loss.backward()
    return {name: p.grad for name, p in task.named_parameters()}


@pytest.mark.parametrize("out_dropout", [0.0, 0.1])
@pytest.mark.parametrize("path", ["plain", "onednn"])
def test_gradients_are_the_same_to_the_bit(out_dropout, path):
    tasks = [model(checkpoint_layers=flag, out_dropout=out_dropout) for flag in (False, True)]
    for task in tasks:
        task.encoder.linear = path
    plain, checkpointed = map(gradients_of, tasks)
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_dropout_goes_on_as_if_nothing_had_been_computed_twice():
    drawn = []
    for flag in (False, True):
        gradients_of(model(checkpoint_layers=flag, out_dropout=0.1))
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_gradients_are_the_same_under_autocast():
    plain, checkpointed = (
        gradients_of(model(checkpoint_layers=flag, out_dropout=0.1), torch.autocast("cpu", torch.bfloat16))
        for flag in (False, True)
    )
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_the_names_of_weights_are_those_without():
    assert list(model(checkpoint_layers=True).state_dict()) == list(model(checkpoint_layers=False).state_dict())


@pytest.mark.parametrize(("checkpoint_layers", "gradients", "times"), [(0, 1, 1), (1, 1, 2), (1, 0, 1)])
def test_layers_are_computed_twice_only_where_gradients_are_taken(checkpoint_layers, gradients, times):
    task, calls = model(checkpoint_layers=bool(checkpoint_layers)), []
    for layer in task.encoder.layers:
        layer.attn.register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(bool(gradients)):
        loss = task(batch()).loss_sum
    if gradients:
        loss.backward()
    assert len(calls) == times * CONFIG.num_hidden_layers


def test_what_is_kept_for_the_backward_pass_is_little_more_than_the_input_of_each_layer():
    kept = []
    for flag in (False, True):
        task, inputs = model(checkpoint_layers=flag), {}
        for layer in task.encoder.layers:
            layer.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.update({module: args[0].nbytes}))
        kept.append(bytes_saved_outside_of_checkpoints(task))
    everything, beside_inputs = kept
    assert len(inputs) == CONFIG.num_hidden_layers
    assert beside_inputs + sum(inputs.values()) < everything / 4


def bytes_saved_outside_of_checkpoints(task):
    weights, storages = {p.data_ptr() for p in task.parameters()}, {}

    def pack(x):
        if x.data_ptr() not in weights:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        states = task.encoder(batch())
    states.sum().backward()
    return sum(storages.values())
