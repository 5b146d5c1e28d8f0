"""Plans: the arithmetic of steps, hours, memory and money, against the model itself and against published runs."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import recipe, runtime, tiny_recipe

from modernbert.batch import IGNORE, PackedBatch
from modernbert.errors import ConfigError
from modernbert.model.config import PRESETS
from modernbert.model.flops import forward_flops
from modernbert.tasks import MaskedLM
from modernbert.train.advice import advice
from modernbert.train.devices import DEVICES, device_of_driver, named_device
from modernbert.train.footprint import USABLE, footprint, kept_per_token, largest_micro_batch
from modernbert.train.measure import made_up_batches, time_phase
from modernbert.train.optim import build_optimizer, set_learning_rate
from modernbert.train.plan import Hardware, evaluations_of, full_flops, make_plan, sheet_timing
from modernbert.train.recipe import PretrainRun
from modernbert.train.roofline import micro_batch_seconds, num_parameters

H100 = named_device("h100")
BASE, TINY = PRESETS["base"], PRESETS["tiny"]


def shape(layers, heads, glu, vocab_size=512):
    return TINY.replace(
        num_hidden_layers=layers, num_attention_heads=heads, hidden_size=64 * heads, intermediate_size=glu,
        vocab_size=vocab_size, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def planned(run, config=TINY, device=H100, count=1, **given):
    run = run.resolve()
    hardware = Hardware(
        name=device.name, source=device.source, count=count, memory_bytes=device.memory_bytes,
        peak_flops=device.peak_flops, bfloat16=True, sheet=device,
    )  # fmt: skip
    timings = [sheet_timing(config, phase, device) for phase in run.phases]
    plan = make_plan(run, config, hardware, timings, **given)
    return plan, advice(plan, run, config, hardware)


def a_run(*phases, **loop):
    own = {"sequence_length": 1024, "tokens_per_step": 2**20, "micro_batch_tokens": 2**16, "tokens": 10**10}
    own |= {"warmup_tokens": 0, "decay_tokens": 0}
    values = recipe("shards", phases=[{**own, **phase} for phase in phases or ({},)])
    values["model"] = {"preset": "tiny"}
    values["loop"] = {"eval_size_tokens": 1000, "eval_tokens": "50%", **loop}
    return PretrainRun.parse(values)


@given(st.integers(1, 5), st.sampled_from([1, 2, 6]), st.integers(1, 8), st.integers(3, 900))
@settings(deadline=None, max_examples=15)
def test_parameters_are_counted_as_the_model_has_them(layers, heads, glu, vocab_size):
    config = shape(layers, heads, 64 * glu, vocab_size)
    with torch.device("meta"):
        assert num_parameters(config) == MaskedLM(config).num_parameters
        with_biases = config.replace(attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True)
        assert num_parameters(with_biases) == MaskedLM(with_biases).num_parameters


@given(
    start=st.integers(1, 12), full=st.integers(1, 40), warmup=st.integers(0, 20_000), budget=st.integers(10_300, 60_000)
)  # fmt: skip
def test_the_steps_of_a_phase_hold_its_tokens(start, full, warmup, budget):
    grows = {"tokens_per_step_start": 256 * start, "batch_warmup_tokens": warmup} if start < full and warmup else {}
    phase = {
        "tokens_per_step": 256 * full,
        "tokens": max(budget, warmup),
        "warmup_tokens": 0,
        "decay_tokens": 0,
        **grows,
    }
    run = tiny_recipe("shards", phase=phase, loop={"tokens": None}).resolve()
    (phase,) = run.phases
    sizes = phase.steps_by_size(run.phase_tokens(phase))
    tokens = sum(256 * size * number for size, number in sizes.items())
    assert run.phase_tokens(phase) <= tokens < run.phase_tokens(phase) + 2 * 256 * full


def test_evaluations_are_counted_as_the_loop_makes_them():
    run = tiny_recipe(
        "shards", phases=[{"name": "a", "tokens": 2560}, {"name": "b", "tokens": 1280}],
        loop={"tokens": None, "eval_tokens": 1000},
    ).resolve()  # fmt: skip
    assert [evaluations_of(run, phase) for phase in run.phases] == [1 + 2 + 1, 1 + 1]


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("config", [shape(4, 4, 384), shape(7, 6, 576)], ids=["256", "384"])
def test_what_a_pass_keeps_for_the_backward_pass_is_what_autograd_keeps(config, bfloat16):
    task = MaskedLM(config, out_dropout=0.1, backend="blocked").draw(0)
    parameters = {p.untyped_storage().data_ptr() for p in task.parameters()}
    ids = torch.randint(3, config.vocab_size, (16, 128))
    batch = PackedBatch.from_sequences(ids, torch.where(torch.rand(ids.shape) < 0.3, ids, IGNORE))
    kept = {}

    def see(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor), autocast:
        task(batch)
    said = batch.num_tokens * kept_per_token(config, 0.3, bfloat16=bfloat16, dropout=True)
    said += batch.num_tokens * 0.3 * 4 * config.vocab_size + (2 * num_parameters(config) if bfloat16 else 0)
    assert said == pytest.approx(sum(kept.values()), rel=0.15)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1024, 8192]), st.booleans())
def test_more_tokens_layers_or_width_take_more_memory(few, more, length, bfloat16):
    def total(config, tokens):
        return footprint(config, tokens, 0.3, bfloat16=bfloat16).total

    assert total(BASE, few * length) < total(BASE, (few + more) * length)
    assert total(shape(few, 4, 384), length) < total(shape(few + more, 4, 384), length)
    assert total(shape(4, few, 384), length) < total(shape(4, few + more, 384), length)


@given(st.integers(2, 80), st.sampled_from(list(PRESETS)), st.sampled_from([512, 1024, 8192]))
def test_the_largest_micro_batch_fits_and_one_more_sequence_does_not(gib, preset, length):
    config, memory = PRESETS[preset], gib * 2**30
    largest = largest_micro_batch(config, memory, length, 0.3, bfloat16=True)
    assert largest % length == 0
    if largest:
        assert footprint(config, largest, 0.3, bfloat16=True).total <= USABLE * memory
    assert footprint(config, largest + length, 0.3, bfloat16=True).total > USABLE * memory - 10


def test_devices_share_a_step_and_price_is_for_each_of_them():
    one, _ = planned(a_run(), price=2.0)
    eight, _ = planned(a_run(), count=8, price=2.0)
    assert eight.hours == pytest.approx(one.hours / 8, rel=0.02) and eight.hours > one.hours / 8
    assert eight.device_hours == pytest.approx(8 * eight.hours)
    assert eight.cost == pytest.approx(2 * eight.device_hours)
    assert eight.phases[0].tokens_per_second == pytest.approx(8 * one.phases[0].tokens_per_second, rel=0.02)
    assert planned(a_run())[0].cost is None


def test_hours_are_steps_times_seconds_and_evaluations():
    plan, _ = planned(a_run(eval_size_tokens=10**9))
    (phase,) = plan.phases
    training = (phase.hours - phase.evaluation_hours) * 3600
    assert training == pytest.approx(phase.steps * phase.step_seconds, rel=1e-3)
    assert phase.tokens_per_second == pytest.approx(phase.tokens / training)
    assert phase.flops == pytest.approx(3 * phase.tokens / 1024 * forward_flops(TINY, [1024], 307), rel=1e-3)
    assert phase.mfu == pytest.approx(phase.flops / training / H100.peak_flops)
    assert phase.evaluation_hours > 0.01


def test_a_longer_context_costs_more_time_and_a_larger_device_less():
    def seconds(length=1024, device=H100, **how):
        return micro_batch_seconds(BASE, 65_536, length, 0.3, device, **how)

    assert seconds(8192) > 1.2 * seconds()
    assert seconds(device=named_device("b200")) < seconds() < seconds(device=named_device("a100-80"))
    assert seconds(training=False) < seconds() / 2.5
    assert micro_batch_seconds(BASE, 1024, 1024, 0.3, H100) > 2 * seconds() / 64, "kernels must be launched"


def test_one_phase_after_another_adds_up():
    plan, _ = planned(a_run({"name": "a"}, {"name": "b", "sequence_length": 8192}))
    assert plan.hours == pytest.approx(sum(phase.hours for phase in plan.phases))
    assert plan.steps == sum(phase.steps for phase in plan.phases) and plan.tokens == 2 * 10**10
    assert plan.phases[1].hours > plan.phases[0].hours


SMALL_STEPS = {"tokens_per_step": 2**16, "micro_batch_tokens": 2**16}


@pytest.mark.parametrize(
    ("phase", "given", "said"),
    [
        ({"micro_batch_tokens": 2**19}, {"config": BASE}, "set micro_batch_tokens=65536"),
        ({"sequence_length": 8192}, {"config": PRESETS["huge"], "device": named_device("l4")},
         "not one sequence of 8,192 tokens fits the 22 GiB"),
        (SMALL_STEPS, {"count": 4}, "a step's 1 micro-batches keep 4 devices busy for 25% of the time"),
        ({"tokens_per_step": 3 * 2**16}, {"count": 2}, "keep 2 devices busy for 75% of the time"),
        ({"micro_batch_tokens": 2048}, {"config": BASE}, "the device waits for the host to launch kernels"),
        ({"tokens": 2**24}, {}, "only 16 steps"),
        ({"tokens": 2**24}, {"config": BASE}, "fewer than 20: a smaller model"),
        ({"tokens": 10**13}, {}, "a larger model would make more of them"),
        ({}, {"source_epochs": {"wiki": 7.3}}, "source wiki is read 7.3 times over; beyond 4 epochs"),
        ({}, {}, "of the time is the host's"),
    ],
)  # fmt: skip
def test_what_is_too_small_or_too_large_is_said_in_a_sentence(phase, given, said):
    _, sentences = planned(a_run(phase), **given)
    assert any(said in sentence for sentence in sentences), sentences


def test_a_micro_batch_is_never_advised_that_the_recipe_refuses():
    phase = {"sequence_length": 1000, "micro_batch_tokens": 401_000, "tokens_per_step": 401_000}
    (sentence,) = [s for s in planned(a_run(phase), config=BASE)[1] if "GiB and" in s]
    assert "set micro_batch_tokens=1000" in sentence
    phase = {"sequence_length": 3000, "micro_batch_tokens": 401_000, "tokens_per_step": 401_000}
    (sentence,) = [s for s in planned(a_run(phase), config=BASE)[1] if "GiB and" in s]
    assert "and the tokens of a step to a multiple of it" in sentence
    found = int(sentence.partition("micro_batch_tokens=")[2].split()[0])
    a_run({**phase, "micro_batch_tokens": found, "tokens_per_step": found})


def test_no_larger_micro_batch_is_advised_where_none_fits():
    run = a_run({"sequence_length": 8192, "micro_batch_tokens": 8192, "tokens_per_step": 8192})
    assert not any("raise micro_batch_tokens" in s for s in planned(run, PRESETS["huge"], named_device("l4"))[1])


def test_a_sound_plan_has_nothing_to_say():
    run = a_run({"tokens": 2 * 10**11, "tokens_per_step": 2**21})
    assert planned(run, config=PRESETS["large"], device=named_device("h200"), count=2)[1] == []


def test_known_devices_are_found_by_name_and_by_what_their_driver_says():
    assert named_device("H100") is DEVICES["h100"] is device_of_driver("NVIDIA H100 80GB HBM3")
    assert device_of_driver("NVIDIA H100 NVL") is None
    assert {"h100", "h200", "a100-40", "a100-80", "l40s", "l4", "a10", "rtx4090", "rtx3090", "b200", "mi300x"} <= set(
        DEVICES
    )
    with pytest.raises(ConfigError, match=r"device='h99' is not known; known are h100, .*, and here, cpu"):
        named_device("h99")


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_what_was_not_calibrated_says_so(device):
    assert ("not measured" in device.source) == (device.name != "h100")
    assert 70 < device.peak_flops / device.bytes_per_second < 500 and not math.isnan(device.memory_bytes)


@pytest.fixture
def timed(shards):
    """A timing of made-up batches of the tiny recipe, and the task it was made with."""
    run = tiny_recipe(shards, phase={"tokens_per_step": 1024}).resolve()
    config = shape(2, 1, 64, 320)
    task = MaskedLM(config).draw(0)
    optimizer = build_optimizer(task, run.optim, 1e-3)
    set_learning_rate(optimizer, 0.0, 1e-3)
    before = [p.clone() for p in task.parameters()]
    batches = made_up_batches(config.vocab_size, run.phases[0])
    timing = time_phase(task, optimizer, run.phases[0], batches, runtime(), micro_batches=3)
    return run.phases[0], config, task, before, timing


def test_a_timing_says_what_a_step_takes(timed):
    phase, config, _, _, timing = timed
    assert timing.num_timed == 3 and timing.tokens_per_micro_batch == 256 and timing.micro_batches_per_step == 4
    assert 0 < timing.evaluation_seconds < 5 and timing.optimizer_seconds > 0 and timing.peak_bytes is None
    assert timing.step_seconds == 4 * timing.micro_batch_seconds + timing.optimizer_seconds
    assert timing.flops_per_micro_batch == pytest.approx(full_flops(config, phase), rel=0.1)


def test_timing_at_a_rate_of_0_leaves_weights_as_they_were_and_no_gradients(timed):
    _, _, task, before, _ = timed
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))
    assert all(p.grad is None for p in task.parameters())


def test_timing_stops_when_the_time_is_up_or_the_batches_are(timed):
    phase, config, task, _, _ = timed
    optimizer = build_optimizer(task, tiny_recipe("shards").optim, 1e-3)
    batches = made_up_batches(config.vocab_size, phase)
    assert time_phase(task, optimizer, phase, batches, runtime(), seconds=0).num_timed == 1
    one = [next(iter(batches))]
    assert time_phase(task, optimizer, phase, one, runtime()).num_timed == 1


def test_a_timing_scaled_to_other_batches_keeps_the_rate_of_operations(timed):
    timing = timed[-1]
    larger = timing.scaled(1024, 3 * timing.flops_per_micro_batch)
    assert larger.micro_batch_seconds == pytest.approx(3 * timing.micro_batch_seconds)
    assert larger.tokens_per_micro_batch == 1024 and larger.optimizer_seconds == timing.optimizer_seconds
