"""Recipes: what parses, what is refused and why, and which changes an unfinished run allows."""

import pytest
from tiny_run import recipe, tiny_recipe

from modernbert.errors import ConfigError
from modernbert.settings import override, read_recipe, recipe_names
from modernbert.text.tokenizer import load_tokenizer, special_ids
from modernbert.train.recipe import PretrainRun, refuse_other_recipe, tokens_of


def refusal(*assignments, **changes):
    with pytest.raises(ConfigError) as caught:
        PretrainRun.parse(override(recipe("shards", **changes), assignments))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_parses_and_resolves(name, shards):
    run = PretrainRun.parse(override(read_recipe(name), [f"data.path={shards}"])).resolve()
    assert run.model.config(320, special_ids(load_tokenizer(shards))).vocab_size == 320
    for phase in run.phases:
        assert isinstance(phase.warmup_tokens, int) and isinstance(phase.decay_tokens, int)
        assert run.phase_tokens(phase) >= phase.tokens_per_step
        assert phase.micro_batch_tokens >= 8 * phase.sequence_length, "fewer sequences do not pack well"


def test_shares_resolve_to_tokens_of_their_phase_or_of_the_run():
    phases = [{"name": "a", "share": 0.75, "warmup_tokens": "10%", "decay_tokens": 100}, {"name": "b", "share": 0.25}]
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
        ("phases.0.share=0", "phases.0.share=0: input should be greater than 0"),
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
    with pytest.raises(ConfigError, match=r"^data.path: not given; add data.path=… to the command or the recipe"):
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
        ({"phases": [{"share": 0.5}]}, "shares add up to 0.5; they must add up to 1"),
        ({"phases": [{"share": 0.5}, {"share": 0.5}]}, "give each its own name"),
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
def test_going_on_with_other_settings_is_refused_by_name(assignment, key):
    stored = tiny_recipe("shards").resolve()
    asked = PretrainRun.parse(override(recipe("shards"), [assignment])).resolve()
    with pytest.raises(ConfigError) as caught:
        refuse_other_recipe(stored, asked, "out")
    assert str(caught.value).startswith("out holds a run with ") and key in str(caught.value)
    assert "go on with the same settings, or choose another --out" in str(caught.value)


@pytest.mark.parametrize(
    "assignment",
    ["data.path=elsewhere", "data.workers=3", "loop.checkpoint_tokens=7", "loop.eval_tokens=50%",
     "loop.eval_size_tokens=9"],
)  # fmt: skip
def test_what_changes_nothing_that_is_learnt_may_differ(assignment):
    stored = tiny_recipe("shards").resolve()
    refuse_other_recipe(stored, PretrainRun.parse(override(recipe("shards"), [assignment])).resolve(), "out")


def test_another_number_of_phases_is_refused():
    two = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5}]
    with pytest.raises(ConfigError, match="phases="):
        refuse_other_recipe(tiny_recipe("shards").resolve(), tiny_recipe("shards", phases=two).resolve(), "out")


def test_a_stored_recipe_comes_back_as_it_was():
    run = tiny_recipe("shards").resolve()
    assert PretrainRun.parse(run.model_dump(mode="json")) == run
