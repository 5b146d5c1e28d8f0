"""How far a mixture lasts: worked out beforehand, and found in the stream."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_shards import make_shards

from modernbert.data import Component, Mixture, MlmBatches
from modernbert.data.budget import cap_remarks, check_budget, epochs, epochs_by_source, long_share, long_share_remark
from modernbert.data.mix import ENDLESS
from modernbert.errors import DataError

LENGTH = 66


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {  # with [CLS] and [SEP]: 60,000, 30,000 and 15,840 tokens
        "news": make_shards(folder / "news", [58] * 1000, seed=1),
        "books": make_shards(folder / "books", [448 - 14] * 60 + [58] * 50, seed=2),
        "poems": make_shards(folder / "poems", [20] * 720, seed=3),
    }


def mixed(folders, **components):
    parts = {name: Component.model_validate(value) for name, value in components.items()}
    return Mixture(folders, parts, sequence_length=LENGTH)


def test_epochs_follow_from_weights_and_sizes(folders):
    mixture = mixed(folders, news=3, poems=1)
    assert epochs(mixture, 120_000) == pytest.approx({"news": 90_000 / 60_000, "poems": 30_000 / 15_840})
    together = Mixture(folders, sequence_length=LENGTH)
    assert list(epochs(together, int(together.num_tokens_C.sum())).values()) == pytest.approx([1, 1, 1])


def test_what_a_capped_component_leaves_the_others_take(folders):
    mixture = mixed(folders, news=1, poems={"weight": 1, "max_epochs": 2})
    assert epochs(mixture, 100_000) == pytest.approx({"news": (100_000 - 2 * 15_840) / 60_000, "poems": 2})
    (remark,) = cap_remarks(mixture, 100_000)
    assert (
        "poems has been read max_epochs=2 times after 63% of the phase and gives 31.7% of its tokens instead" in remark
    )
    assert cap_remarks(mixture, 60_000) == []


def test_one_cap_after_the_other(folders):
    mixture = mixed(
        folders, books=2, news={"weight": 1, "max_epochs": 0.5}, poems={"weight": 1, "max_epochs": 1}
    )  # fmt: skip
    read = epochs(mixture, 200_000)
    assert read["poems"] == pytest.approx(1) and read["news"] == pytest.approx(0.5)
    assert read["books"] * mixture.num_tokens_C[0] == pytest.approx(200_000 - 15_840 - 30_000)
    assert len(cap_remarks(mixture, 200_000)) == 2


def test_caps_that_leave_too_few_tokens_are_refused(folders):
    mixture = mixed(folders, news={"weight": 1, "max_epochs": 1.5}, poems={"weight": 9, "max_epochs": 4})
    check_budget(mixture, int(0.99 * 90_000) + 4 * 15_840)  # a part of an epoch counts less, for it is an estimate
    with pytest.raises(DataError, match="the phase wants 153,360"):
        check_budget(mixture, 90_000 + 4 * 15_840)
    with pytest.raises(DataError) as caught:
        check_budget(mixture, 200_000)
    assert str(caught.value) == (
        "the mixture holds 152,460 tokens under its max_epochs (news=1.5, poems=4) and the phase wants 200,000; "
        "raise max_epochs, add a source, or lower the phase's tokens"
    )
    check_budget(mixed(folders, news=1, poems={"weight": 9, "max_epochs": 4}), 10**12)


parts = st.tuples(st.floats(0.05, 20), st.one_of(st.none(), st.floats(0.3, 3)))


@settings(deadline=None, max_examples=10)
@given(values=st.lists(parts, min_size=3, max_size=3), tokens=st.integers(40_000, 200_000))
def test_the_stream_reads_what_was_worked_out(folders, values, tokens):
    components = {
        name: Component(weight=weight, max_epochs=cap) for name, (weight, cap) in zip(folders, values, strict=True)
    }
    mixture = Mixture(folders, components, sequence_length=LENGTH)
    try:
        check_budget(mixture, tokens + 2048)
    except DataError:
        assume(False)
    batches = MlmBatches(
        folders, mixture=components, sequence_length=LENGTH, micro_batch_tokens=1024, mask_rate=0.3, seed=0
    )
    read = dict.fromkeys(mixture.names, 0)
    for batch, state in batches.stream():
        for position, length in zip(state.positions.tolist(), batch.lengths(), strict=True):
            read[mixture.names[position >> 48]] += length
        if state.pack.tokens >= tokens:
            break
    pool = 512 * LENGTH  # what waits to be packed
    for name, share in epochs(mixture, tokens).items():
        assert abs(read[name] - share * mixture.num_tokens_C[mixture.names.index(name)]) <= pool


def test_the_share_of_long_documents_is_that_of_what_is_read(folders):
    mixture = mixed(folders, news=3, books=1)
    long_in_books = 434 * 60 / (434 * 60 + 58 * 50)
    assert long_share(mixture, 128, 10_000) == pytest.approx(long_in_books / 4)
    assert long_share(mixture, 60, 10_000) == pytest.approx(long_in_books / 4)  # 58 and two fit
    assert long_share(mixture, 59, 10_000) == pytest.approx(1)
    capped = mixed(folders, news=3, books={"weight": 1, "max_epochs": 1})
    books_tokens = capped.num_tokens_C[0]
    assert long_share(capped, 128, 1_000_000) == pytest.approx(long_in_books * books_tokens / 1_000_000)


def test_too_few_long_documents_are_remarked_upon_with_the_remedy(folders):
    mixture = mixed(folders, news=9, books=1)
    assert long_share_remark(mixture, 128, 10_000, least=0.05) is None
    remark = long_share_remark(mixture, 1024, 10_000, least=0.1)
    assert remark.startswith(
        "Only 0.0% of the tokens lie in documents longer than the 1,024 tokens of the phase before"
    )
    assert remark.endswith("; add long documents, for the sources hold none.")


def test_the_source_to_take_long_documents_from_is_the_one_that_has_most(folders, tmp_path):
    long = make_shards(tmp_path / "long", [300] * 50, seed=4)
    mixture = mixed({**folders, "zzz": long}, news=20, books=1, zzz=0.1)
    remark = long_share_remark(mixture, 256, 10_000, least=0.5)
    assert "mixture.long = {source = 'books', min_tokens = 256, weight = …}" in remark
    mixture = mixed({**folders, "aaa": long}, news=20, aaa=1)
    assert "source = 'aaa'" in long_share_remark(mixture, 256, 10_000, least=0.5)


def test_how_often_a_source_is_read_counts_all_that_is_read_of_it(folders):
    part = {"source": "books", "weight": 1}
    mixture = mixed(folders, news=1, long={**part, "min_tokens": 400}, rest=part)
    read = epochs(mixture, 90_000)
    share = 434 * 60 / (434 * 60 + 58 * 50)
    assert epochs_by_source(mixture, 90_000) == pytest.approx(
        {"news": read["news"], "books": read["long"] * share + read["rest"]}
    )


@pytest.mark.parametrize("most", [1e300, 2.0**60])
def test_a_cap_beyond_all_counting_is_none(folders, most):
    mixture = mixed(folders, news={"weight": 1, "max_epochs": most})
    assert mixture.caps_C.tolist() == [ENDLESS]
    check_budget(mixture, 10**15)
    assert len(mixture.draw((), 5000)[0]) == 5000


def test_the_sums_are_those_of_the_documents(folders):
    mixture = Mixture(folders, sequence_length=LENGTH)
    lengths = mixture.pieces.lengths(np.arange(len(mixture.pieces)))
    assert lengths.sum() == mixture.num_tokens_C.sum()
