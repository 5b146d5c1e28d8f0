"""Recipes: what parses, what is refused and why, and which changes an unfinished run allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import recipe, tiny_recipe

from modernbert.errors import ConfigError
from modernbert.model.config import PRESETS
from modernbert.settings import override, read_recipe, recipe_names
from modernbert.text.tokenizer import load_tokenizer, special_ids
from modernbert.train.recipe import PretrainRun, changes_of, tokens_of
from modernbert.train.scale import read_run


def refusal(*assignments, **changes):
    with pytest.raises(ConfigError) as caught:
        PretrainRun.parse(override(recipe("shards", **changes), assignments))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_parses_and_resolves(name, shards):
    start = ["phases.adapt.checkpoint=somewhere"] if name.endswith("continue") else []
    run = read_run(name, [f"data.path={shards}", *start]).resolve()
    shape = PRESETS["mini"].replace(vocab_size=320) if start else None
    assert run.model.config(320, special_ids(load_tokenizer(shards)), shape).vocab_size == 320
    for phase in run.phases:
        assert isinstance(phase.warmup_tokens, int) and isinstance(phase.decay_tokens, int)
        assert run.phase_tokens(phase) >= phase.tokens_per_step
        least = {"large": 4, "huge": 2, "laptop": 4}.get(name, 8)  # more would not fit their devices
        assert phase.micro_batch_tokens >= least * phase.sequence_length, "fewer sequences do not pack well"


def test_the_published_sizes_are_two_trillion_tokens_in_steps_of_five_million():
    for name in PRESETS:
        run = read_run(name, ["data.path=shards"])
        assert run.model.preset == name and run.total_tokens == 2_000_000_000_000
        assert {round(phase.tokens_per_step, -6) for phase in run.phases} == {5_000_000}
        assert [run.phases[0].global_rope_theta, run.phases[-2].global_rope_theta] == [10_000, 160_000]


def test_a_variant_edits_the_phases_of_what_it_extends_by_name(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'extends = "tiny"\n[data]\npath = "shards"\n[[phases]]\nname = "extend"\nlr = 1e-4\n'
    )
    mine, theirs = read_run(tmp_path / "mine.toml"), read_run("tiny", ["data.path=shards"])
    assert [phase.name for phase in mine.phases] == ["stable", "extend", "anneal"]
    assert mine.phases[1] == theirs.phases[1].model_copy(update={"lr": 1e-4})
    assert mine.phases[0] == theirs.phases[0] and mine.model == theirs.model
    again = read_run(tmp_path / "mine.toml", ["phases.extend.lr=2e-4"])
    assert again.phases[1].lr == 2e-4


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(ConfigError, match="leads in a circle"):
        read_run(tmp_path / "a.toml")


@given(st.integers(2 * 10**6, 2 * 10**12), st.sampled_from(list(PRESETS)))
def test_a_recipe_scaled_to_any_budget_keeps_its_shares_and_can_be_run(tokens, name):
    run, whole = read_run(name, ["data.path=shards", f"scale_to={tokens}"]), read_run(name, ["data.path=shards"])
    assert run.total_tokens == pytest.approx(tokens, rel=1e-5)
    for phase, theirs in zip(run.phases, whole.phases, strict=True):
        assert run.phase_tokens(phase) / tokens == pytest.approx(whole.phase_tokens(theirs) / 2e12, rel=1e-3)
        assert phase.tokens_per_step <= max(theirs.tokens_per_step, phase.sequence_length)
        assert (phase.lr, phase.mask_rate, phase.sequence_length) == (
            theirs.lr,
            theirs.mask_rate,
            theirs.sequence_length,
        )
        assert phase.warmup_tokens <= 0.1 * run.phase_tokens(phase) + 1


def test_scaling_to_the_published_budget_changes_neither_steps_nor_warm_up():
    run, whole = (read_run("base", ["data.path=shards", *more]) for more in (["scale_to=2_000_000_000_000"], []))
    for phase, theirs in zip(run.phases, whole.phases, strict=True):
        assert phase.tokens_per_step == pytest.approx(theirs.tokens_per_step, rel=0.01)
        assert phase.warmup_tokens == theirs.warmup_tokens


@pytest.mark.parametrize("value", ["0", "x", "-5", "1e9", "true"])
def test_a_budget_to_scale_to_is_a_number_of_tokens(value):
    with pytest.raises(ConfigError, match="scale_to="):
        read_run("base", ["data.path=shards", f"scale_to={value}"])


def test_a_budget_too_small_for_a_phase_is_refused():
    with pytest.raises(
        ConfigError, match="leaves phase anneal 2,500 tokens, less than one sequence of 8,192; raise it 4-fold"
    ):
        read_run("base", ["data.path=shards", "scale_to=100_000"])


def test_a_batch_grows_over_its_warm_up_in_whole_micro_batches():
    run = tiny_recipe("shards", steps=100, phase={
        "tokens_per_step": 2048, "tokens_per_step_start": 256, "batch_warmup_tokens": 10_000, "warmup_tokens": 0,
    }).resolve()  # fmt: skip
    phase, budget = run.phases[0], run.phase_tokens(run.phases[0])
    sizes = [phase.micro_batches_at(tokens) for tokens in range(0, budget, 500)]
    assert sizes[0] == 1 and sizes[-1] == 8 and sizes == sorted(sizes)
    done, steps = 0, 0
    while done < budget:
        done += phase.micro_batches_at(done) * phase.micro_batch_tokens
        steps += 1
    assert phase.num_steps(budget) == steps


def test_shares_resolve_to_tokens_of_their_phase_or_of_the_run():
    phases = [
        {"name": "a", "tokens": "75%", "warmup_tokens": "10%", "decay_tokens": 100},
        {"name": "b", "tokens": "25%"},
    ]
    run = tiny_recipe(
        "shards", phases=phases, loop={"tokens": 10_000, "checkpoint_tokens": "12.5%", "eval_tokens": "100%"}
    ).resolve()
    assert run.loop.checkpoint_tokens == 1250 and run.loop.eval_tokens == 10_000
    assert [run.phase_tokens(phase) for phase in run.phases] == [7500, 2500]
    assert [phase.warmup_tokens for phase in run.phases] == [750, 250]
    assert [phase.decay_tokens for phase in run.phases] == [100, 500]
    assert run.resolve() == run


def test_a_run_so_short_that_a_share_is_nothing_still_looks_at_every_step():
    run = tiny_recipe("shards", loop={"tokens": 300, "checkpoint_tokens": "0.1%", "eval_tokens": 0}).resolve()
    assert run.loop.checkpoint_tokens == run.loop.eval_tokens == 1


def test_tokens_of():
    assert tokens_of("5%", 1_000_000) == 50_000
    assert tokens_of("33.3%", 1000) == 333
    assert tokens_of(7, 1000) == 7


def test_counts_may_be_written_in_every_way_toml_and_the_command_line_know():
    values = override(recipe("shards"), ["loop.tokens=1_000_000", "loop.eval_tokens=1e5", "loop.checkpoint_tokens=5%"])
    loop = PretrainRun.parse(values).loop
    assert (loop.tokens, loop.eval_tokens, loop.checkpoint_tokens) == (1_000_000, 100_000, "5%")


@pytest.mark.parametrize(
    "assignment,message",
    [
        ("sed=1", "sed: unknown key; did you mean 'seed'?"),
        ("model.dropout=0.1", "model.dropout: unknown key; "),
        ("loop.token=5", "loop.token: unknown key; did you mean 'tokens'?"),
        ("phases.0.learning_rate=1", "phases.0.learning_rate: unknown key; "),
        ("optim.weight_decay=-1", "optim.weight_decay=-1: input should be greater than or equal to 0"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("model.preset=medium", "model.preset='medium': input should be 'tiny', 'mini', 'small', 'base', 'large' or 'huge'"),
        ("model.attention_dropout=1", "model.attention_dropout=1: input should be less than 1"),
        ("data.workers=-1", "data.workers=-1: input should be greater than or equal to 0"),
        ("loop.tokens=0", "loop.tokens=0: input should be greater than or equal to 1"),
        ("loop.tokens=5%", "loop.tokens='5%': input should be a valid integer"),
        ("loop.eval_mask_rate=1", "loop.eval_mask_rate=1: input should be less than 1"),
        ("loop.checkpoint_tokens=101%", "loop.checkpoint_tokens='101%': must be a number of tokens, or a share such as"),
        ("loop.checkpoint_tokens=often", "loop.checkpoint_tokens='often': must be a number of tokens, or a share such as"),
        ("phases.0.name=Phase 1", "phases.0.name='Phase 1': string should match pattern"),
        ("phases.0.tokens=0%", "the phases' tokens (0%) add up to 0"),
        ("phases.0.share=1", "phases.0.share: unknown key; "),
        ("phases.0.start=checkpoint", "phases.0.start='checkpoint': input should be 'state'"),
        ("phases.0.decay_shape=square", "phases.0.decay_shape='square': input should be"),
        ("guard.on_nan=ignore", "guard.on_nan='ignore': input should be"),
        ("data.sources.more=x", "data: give either path=SHARDS or sources.NAME=SHARDS"),
        ("phases.0.mixture.wiki=1", "phase stable: the mixture names 'wiki', and the data's sources are text"),
        ("phases.0.mixture.text=0", "phases.0.mixture.text.weight=0"),

        ("phases.0.lr=0", "phases.0.lr=0: input should be greater than 0"),
        ("phases.0.lr=nan", "phases.0.lr=nan: input should be"),
        ("phases.0.mask_rate=0", "phases.0.mask_rate=0: input should be greater than 0"),
        ("phases.0.sequence_length=2", "phases.0.sequence_length=2: input should be greater than or equal to 3"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("phases=[]", "phases=[]: list should have at least 1 item"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_name(assignment, message):
    assert refusal(assignment).startswith(message)


def test_a_count_below_zero_is_refused_under_the_key_that_was_written():
    assert refusal("loop.checkpoint_tokens=-5").startswith("loop.checkpoint_tokens=-5: ")


@pytest.mark.parametrize("assignment", ["phases.0.lr=inf", "optim.eps=inf", "optim.weight_decay=inf"])
def test_infinity_is_no_setting(assignment):
    assert "inf" in refusal(assignment)


def test_what_is_missing_is_named():
    values = recipe("shards")
    del values["data"]["path"]
    with pytest.raises(ConfigError, match=r"^data: give either path=SHARDS or sources.NAME=SHARDS"):
        PretrainRun.parse(values)
    del values["phases"][0]["lr"]
    values["data"]["path"] = "shards"
    with pytest.raises(ConfigError, match=r"^phases.0.lr: not given; add phases.0.lr=…"):
        PretrainRun.parse(values)


def test_where_the_whole_section_is_missing_the_key_to_add_is_named():
    with pytest.raises(ConfigError, match=r"data.path=…"):
        PretrainRun.parse(read_recipe("quickstart"))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"phase": {"micro_batch_tokens": 31}},
         "micro_batch_tokens=31 cannot hold one sequence of sequence_length=32; raise the former"),
        ({"phase": {"tokens_per_step": 300}},
         "tokens_per_step=300 is no whole number of micro-batches of micro_batch_tokens=256; make it a multiple"),
        ({"phase": {"tokens_per_step": 128}}, "tokens_per_step=128 is no whole number of micro-batches"),
        ({"phases": [{"tokens": "50%"}]}, r"the phases' tokens \(50%\) add up to 1,536, and loop.tokens is 3,072; make them"),
        ({"phases": [{"tokens": 512}]}, "add up to 512, and loop.tokens is 3,072; make them agree"),
        ({"loop": {"tokens": None}}, "a phase's tokens are a share, so loop.tokens is needed"),
        ({"loop": {"tokens": 200}}, "its 200 tokens are less than one batch of tokens_per_step=256; raise the budget"),
        ({"phase": {"tokens_per_step_start": 256}}, "tokens_per_step_start and batch_warmup_tokens belong together"),
        ({"phase": {"tokens_per_step_start": 512, "batch_warmup_tokens": "5%"}}, "a batch warm-up grows"),
        ({"phase": {"lr_start": 1}}, "lr_start=1.0 exceeds lr=0.003, the peak; lower it"),
        ({"model": {"preset": None}}, "model.preset is not given, and phase 0 names no checkpoint"),
        ({"model": {"tile_from": "a"}, "phase": {"checkpoint": "b"}}, "both say where weights come from; give one"),
        ({"phases": [{"tokens": "50%"}, {"tokens": "50%"}]}, "give each its own name"),
        ({"phase": {"sequence_length": 65}},
         "phase stable: sequence_length=65 exceeds the model's 64 positions; raise model.max_position_embeddings"),
        ({"phase": {"warmup_tokens": "60%", "decay_tokens": "60%"}}, "warm-up and decay take .* tokens of its .*; shorten"),
        ({"phase": {"warmup_tokens": 10**6}}, "warm-up and decay take .* tokens of its .*; shorten"),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_be_is_refused_with_its_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_recipe("shards", **changes)


def test_a_shape_that_cannot_be_is_refused(shards):
    run = tiny_recipe(shards, model={"hidden_size": 65})
    with pytest.raises(ConfigError, match="hidden_size=65"):
        run.model.config(320, special_ids(load_tokenizer(shards)))


@pytest.mark.parametrize(
    "assignment,key",
    [
        ("seed=1", "seed=0 (now 1)"),
        ("model.num_hidden_layers=3", "model.num_hidden_layers=2 (now 3)"),
        ("optim.betas=[0.9, 0.99]", "optim.betas"),
        ("loop.tokens=99_999", "loop.tokens=3072 (now 99999)"),
        ("loop.eval_mask_rate=0.3", "loop.eval_mask_rate=0.15 (now 0.3)"),
        ("phases.0.lr=1e-3", "phases.0.lr=0.003 (now 0.001)"),
        ("phases.0.mask_rate=0.2", "phases.0.mask_rate=0.3 (now 0.2)"),
        ("phases.0.micro_batch_tokens=128", "phases.0.micro_batch_tokens=256 (now 128)"),
    ],
)
def test_what_another_recipe_changes_is_named(assignment, key):
    stored = tiny_recipe("shards").resolve()
    asked = PretrainRun.parse(override(recipe("shards"), [assignment])).resolve()
    assert any(change.startswith(key) for change in changes_of(stored, asked))


@pytest.mark.parametrize(
    "assignment",
    ["data.path=elsewhere", "data.workers=3", "loop.checkpoint_tokens=7", "loop.eval_tokens=50%",
     "loop.eval_size_tokens=9"],
)  # fmt: skip
def test_what_changes_nothing_that_is_learnt_may_differ(assignment):
    stored = tiny_recipe("shards").resolve()
    assert changes_of(stored, PretrainRun.parse(override(recipe("shards"), [assignment])).resolve()) == []


def test_another_number_of_phases_is_a_change():
    two = [{"name": "a", "tokens": "50%"}, {"name": "b", "tokens": "50%"}]
    changes = changes_of(tiny_recipe("shards").resolve(), tiny_recipe("shards", phases=two).resolve())
    assert len(changes) == 1 and changes[0].startswith("phases=")


def test_a_stored_recipe_comes_back_as_it_was():
    run = tiny_recipe("shards").resolve()
    assert PretrainRun.parse(run.model_dump(mode="json")) == run
