"""The stream of several sources: shares, caps, resuming, annealed masking, and where each piece is from."""

import contextlib
import hashlib
import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import make_shards
from tiny_run import same

from modernbert.batch import IGNORE
from modernbert.data import Component, LoaderState, MlmBatches
from modernbert.data.pack import PackState
from modernbert.errors import ConfigError, DataError
from modernbert.text.shards import Shards

LENGTH, BUDGET = 66, 528


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    draw = np.random.default_rng(0)
    return {
        "news": make_shards(folder / "news", draw.integers(3, 60, 400), seed=1),
        "books": make_shards(folder / "books", draw.integers(100, 900, 30), heldout=[70, 80], seed=2),
        "poems": make_shards(folder / "poems", draw.integers(5, 30, 90), seed=3),
    }


def mixed(folders, mixture=None, **changes):
    options = {"sequence_length": LENGTH, "micro_batch_tokens": BUDGET, "mask_rate": 0.3, "seed": 5}
    parts = {name: Component.model_validate(value) for name, value in (mixture or {}).items()}
    return MlmBatches(folders, mixture=parts, **(options | changes))


def tokens_by_component(batches, pairs):
    """Tokens of each component in some batches."""
    found = dict.fromkeys(batches.mixture.names, 0)
    for batch, state in pairs:
        for position, length in zip(state.positions.tolist(), batch.lengths(), strict=True):
            found[batches.mixture.names[position >> 48]] += length
    return found


def digest(batches):
    whole = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.input_ids_T, batch.labels_T, batch.cu_seqlens):
            whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()[:16]


# As the code of one source gave them, before there were mixtures (commit 1bcc3d1): curves of runs of then stay valid.
@pytest.mark.parametrize(
    ("seed", "length", "budget", "rate", "count", "expected"),
    [
        (0, 128, 1024, 0.3, 300, "bc8765c59520c7f4"),
        (5, 64, 64, 0.15, 600, "9eff115182174549"),
        (2**63 - 1, 512, 4096, 0.3, 80, "f663218a18656cb6"),
    ],
)
def test_one_source_gives_the_batches_it_always_gave(golden, seed, length, budget, rate, count, expected):
    batches = mixed(golden, sequence_length=length, micro_batch_tokens=budget, mask_rate=rate, seed=seed)
    assert digest(batch for batch, _ in itertools.islice(batches.stream(), count)) == expected
    weighted = mixed(
        golden, {"x": {"source": "made", "weight": 7}}, sequence_length=length, micro_batch_tokens=budget,
        mask_rate=rate, seed=seed,
    )  # fmt: skip
    assert digest(batch for batch, _ in itertools.islice(weighted.stream(), count)) == expected


def test_one_held_out_source_gives_the_batches_it_always_gave(golden):
    batches = mixed(golden, split="heldout", sequence_length=128, micro_batch_tokens=1024, seed=3)
    assert digest(batches.once()) == "6413a4c5e72c7c41"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    lengths = np.random.Generator(np.random.Philox(7)).integers(1, 400, 700)
    heldout = np.random.Generator(np.random.Philox(8)).integers(1, 400, 60)
    return {"made": make_shards(tmp_path_factory.mktemp("golden") / "made", lengths, heldout=heldout)}


def test_shares_of_tokens_in_the_batches_are_the_weights(folders):
    mixture = {"news": 6, "books": 3, "poems": 1}
    batches = mixed(folders, mixture)
    found = tokens_by_component(batches, itertools.islice(batches.stream(), 500))
    total = sum(found.values())
    assert {name: tokens / total for name, tokens in found.items()} == pytest.approx(
        {"news": 0.6, "books": 0.3, "poems": 0.1}, abs=0.015
    )


def test_a_component_is_read_max_epochs_times_and_each_piece_as_often(folders):
    batches = mixed(folders, {"news": 1, "poems": {"weight": 1, "max_epochs": 3}})
    sizes = batches.mixture.num_pieces_C
    seen = np.concatenate([state.positions for _, state in itertools.islice(batches.stream(), 300)])
    poems = np.sort(seen[seen >> 48 == 1] & (2**48 - 1))
    assert poems.tolist() == list(range(3 * sizes[1]))
    shown = np.bincount(batches.mixture.pieces_at(1 << 48 | poems, 5) - sizes[0])
    assert (shown == 3).all()


def test_where_all_components_end_all_their_tokens_have_been_given_and_the_stream_says_so(folders):
    mixture = {"news": {"weight": 2, "max_epochs": 1}, "poems": {"weight": 1, "max_epochs": 2.5}}
    batches = mixed(folders, mixture)
    for num_workers in (0, 2):
        seen = []
        with pytest.raises(DataError, match="has been read max_epochs times; raise max_epochs, add a source, or lower"):
            for batch, state in batches.stream(num_workers=num_workers):
                seen.append((batch, state))
        caps = batches.mixture.caps_C
        positions = np.concatenate([state.positions for _, state in seen])
        expected = [c << 48 | k for c in (0, 1) for k in range(caps[c])]
        assert np.sort(positions).tolist() == expected
        assert all(batch.num_tokens >= 0.9 * BUDGET for batch, _ in seen[:-3])


def test_once_shows_every_component_once_whatever_the_weights(folders):
    capped = {"news": 100, "books": {"weight": 1, "max_epochs": 0.5}, "poems": 1}
    batches = mixed(folders, capped)
    total = sum(batch.num_tokens for batch in batches.once())
    assert total == batches.mixture.num_tokens_C.sum()


components = st.dictionaries(
    st.sampled_from(["news", "books", "poems", "long", "short"]),
    st.fixed_dictionaries(
        {"weight": st.floats(0.01, 100)},
        optional={"max_epochs": st.floats(0.2, 5), "max_tokens": st.sampled_from([500, 900])},
    ),
    min_size=1,
)


@settings(deadline=None, max_examples=12)
@given(mixture=components, stopped_behind=st.integers(0, 45), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_going_on_from_any_state_is_going_on_for_any_mixture(folders, mixture, stopped_behind, seed, data):
    for name, source in (("long", "books"), ("short", "news")):
        if name in mixture:
            mixture[name] |= {"source": source}
    batches = mixed(folders, mixture, seed=seed, mask_rate_end=0.1, total_tokens=40 * BUDGET)
    unbroken = until_the_end(batches.stream(), 50)
    stopped_behind = min(stopped_behind, len(unbroken) - 1)
    state = LoaderState.from_dict(json.loads(json.dumps(unbroken[stopped_behind][1].to_dict())))
    resumed = until_the_end(mixed(folders, mixture, seed=seed, mask_rate_end=0.1, total_tokens=40 * BUDGET).stream(state),
                            49 - stopped_behind)  # fmt: skip
    for (batch, after), (expected, expected_after) in zip(resumed, unbroken[stopped_behind + 1 :], strict=True):
        assert same(batch, expected)
        assert after == expected_after
        assert after.mask_rate == expected_after.mask_rate and (after.positions == expected_after.positions).all()


def until_the_end(stream, count):
    found = []
    with contextlib.suppress(DataError):
        found.extend(itertools.islice(stream, count))
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_mixed_and_annealed_batches_are_the_same_for_any_number_of_workers(folders):
    batches = mixed(folders, {"news": 2, "books": 1}, mask_rate_end=0.05, total_tokens=20 * BUDGET)
    alone = list(itertools.islice(batches.stream(), 40))
    stream = batches.stream(num_workers=3)
    for (batch, state), (expected, expected_state) in zip(itertools.islice(stream, 40), alone, strict=True):
        assert same(batch, expected) and state == expected_state and state.mask_rate == expected_state.mask_rate
    stream.close()


def share_masked(batches):
    chosen = sum(int((batch.labels_T != IGNORE).sum()) for batch in batches)
    return chosen / sum(batch.num_tokens - 2 * batch.num_documents for batch in batches)


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.05), (0.1, 0.5)])
def test_the_masking_rate_moves_in_a_line_and_stays(folders, start, end):
    batches = mixed(folders, mask_rate=start, mask_rate_end=end, total_tokens=200 * BUDGET)
    pairs = list(itertools.islice(batches.stream(), 300))
    before = 0
    for _, state in pairs:
        assert state.mask_rate == pytest.approx(start + (end - start) * min(1, before / (200 * BUDGET)))
        before = state.pack.tokens
    assert pairs[0][1].mask_rate == start and pairs[-1][1].mask_rate == pytest.approx(end)
    assert share_masked([batch for batch, _ in pairs[:50]]) == pytest.approx(start + (end - start) / 8, abs=0.015)
    assert share_masked([batch for batch, _ in pairs[:200]]) == pytest.approx((start + end) / 2, abs=0.01)
    assert share_masked([batch for batch, _ in pairs[220:]]) == pytest.approx(end, abs=0.01)


def test_a_constant_rate_is_told_too(folders):
    assert {state.mask_rate for _, state in itertools.islice(mixed(folders).stream(), 5)} == {0.3}


def test_an_end_of_the_masking_rate_needs_to_know_where():
    with pytest.raises(ValueError, match=r"mask_rate_end=0.1 needs total_tokens"):
        mixed({}, mask_rate_end=0.1)


def test_tokens_are_counted_as_they_are_given(folders):
    tokens = 0
    for batch, state in itertools.islice(mixed(folders).stream(), 50):
        tokens += batch.num_tokens
        assert state.pack.tokens == tokens


def test_a_next_phase_goes_on_in_the_text_and_begins_its_own_weights_masking_and_caps(folders):
    first = mixed(folders, {"news": 1, "books": 1})
    *_, (_, state) = itertools.islice(first.stream(), 100)
    second = mixed(
        folders, {"news": 9, "books": {"weight": 1, "max_epochs": 1}}, mask_rate_end=0.1, total_tokens=50 * BUDGET
    )
    pairs = list(itertools.islice(second.stream(state.next_phase()), 400))
    assert pairs[0][1].mask_rate == 0.3
    found = tokens_by_component(second, pairs[70:])  # behind the pool of the first phase
    assert found["news"] / sum(found.values()) == pytest.approx(0.9, abs=0.03)
    books = [p for _, s in pairs for p in s.positions.tolist() if p >> 48 == 0]
    waiting = [p for p in state.pack.pending if p >> 48 == 0]
    ahead = state.pack.drawn[0] + np.arange(second.mixture.num_pieces_C[0])  # one epoch from where the first stood
    assert sorted(books) == sorted([*waiting, *ahead.tolist()])
    assert pairs[-1][1].since == state.pack.drawn


@pytest.mark.parametrize("change", [{"seed": 6}, {"sequence_length": 65}, {"mixture": {"news": 1, "poems": 1}}])
def test_a_state_of_another_stream_is_refused(folders, change):
    _, state = next(mixed(folders, {"news": 1, "books": 1}).stream())
    other = mixed(folders, **{"mixture": {"news": 1, "books": 1}, **change})
    with pytest.raises(ConfigError, match=r"is none in this stream .* or begin the phase anew"):
        next(other.stream(state))
    next(mixed(folders, {"news": 5, "books": 1}, micro_batch_tokens=700, mask_rate=0.2).stream(state))


def test_each_piece_says_where_it_is_from(folders):
    batches = mixed(folders, {"news": 1, "tomes": {"source": "books", "weight": 1, "min_tokens": 200}})
    shards = {name: Shards.open(folder) for name, folder in folders.items()}
    for batch, state in itertools.islice(batches.stream(), 0, 120, 30):
        ids = np.where(batch.labels_T == IGNORE, batch.input_ids_T, batch.labels_T)
        described = batches.describe(state.positions)
        starts = batch.cu_seqlens.tolist()
        assert len(described) == batch.num_documents
        for row, start, stop in zip(described, starts, starts[1:], strict=False):
            assert row["source"] == {"news": "news", "tomes": "books"}[row["component"]]
            found = shards[row["source"]].tokens(row["document"], row["from_token"], row["to_token"])
            assert found.tolist() == ids[start + 1 : stop - 1].tolist()
            assert len(row["text"]) <= 80 and row["text"].startswith(f"w{ids[start + 1]}")
            assert row["component"] == "news" or shards["books"].lengths[row["document"]] >= 200
        assert json.loads(json.dumps(described)) == described
    (later,) = batches.describe(np.array([2 * batches.mixture.num_pieces_C[0]]))
    assert later["epoch"] == 2 and later["component"] == "news"
    assert batches.describe(np.array([], dtype=np.int64)) == []


def test_a_state_of_a_mixture_is_small_plain_numbers(folders):
    mixture = {f"part{i}": {"source": "news", "weight": i + 1} for i in range(20)}
    *_, (_, state) = itertools.islice(mixed(folders, mixture).stream(), 100)
    stored = json.dumps(state.to_dict())
    assert len(stored) < 16_000
    assert LoaderState.from_dict(json.loads(stored)) == state
    assert LoaderState.from_dict(json.loads(stored)).positions is None


def test_the_same_text_in_two_components_is_read_in_two_orders(folders):
    mixture = {"a": {"source": "news", "weight": 1}, "b": {"source": "news", "weight": 1}}
    batches = mixed(folders, mixture)
    size = batches.mixture.num_pieces_C[0]
    a, b = (batches.mixture.locate(batches.mixture.pieces_at(c << 48 | np.arange(size), 5))[1] for c in (0, 1))
    assert sorted(a.tolist()) == sorted(b.tolist()) and (a == b).mean() < 0.05


@pytest.mark.slow
def test_going_on_late_in_a_long_run_takes_as_long_as_early_in_it(tmp_path):
    lengths = {"web": np.full(250_000, 500), "books": np.full(400, 60_000)}
    folders = {name: make_shards(tmp_path / name, sizes, drawn=False) for name, sizes in lengths.items()}
    mixture = {"web": 1, "books": {"weight": 1, "min_tokens": 1000}}

    def seconds_to_go_on(share):
        """From nothing in memory to the first batch, with so much of 149 M tokens behind it."""
        drawn = tuple(int(share * pieces) for pieces in whole.mixture.num_pieces_C)
        stored = LoaderState(whole.key, PackState(drawn, tuple(range(500)), int(share * 149e6))).to_dict()
        started_at = time.perf_counter()
        batches = mixed(folders, mixture, sequence_length=1024, micro_batch_tokens=8192)
        next(batches.stream(LoaderState.from_dict(stored)))
        return time.perf_counter() - started_at

    whole = mixed(folders, mixture, sequence_length=1024, micro_batch_tokens=8192)
    assert sum(int(n) for n in whole.mixture.num_tokens_C) > 1.49e8
    pairs = [(seconds_to_go_on(0.01), seconds_to_go_on(0.9)) for _ in range(9)]
    early, late = (min(column) for column in zip(*pairs, strict=True))
    print(f"{early:.3f} s behind 1 %, {late:.3f} s behind 90 %")
    assert late < 1.5 * early and late < 1
