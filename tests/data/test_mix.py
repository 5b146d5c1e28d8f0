"""Which documents a component takes, and which component comes next."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import make_shards

from modernbert.data.mix import ENDLESS, Component, Mixture
from modernbert.data.order import component_of
from modernbert.errors import DataError
from modernbert.text.shards import Shards

LENGTH = 34  # 32 tokens of a document and two special ones


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Short documents, long ones, and a source of a tenth of the tokens."""
    folder = tmp_path_factory.mktemp("made")
    draw = np.random.default_rng(0)
    lengths = {
        "news": draw.integers(1, 60, 300), "books": draw.integers(100, 900, 40), "poems": draw.integers(5, 30, 80),
    }  # fmt: skip
    return {
        name: make_shards(folder / name, sizes, heldout=sizes[:9], seed=i)
        for i, (name, sizes) in enumerate(lengths.items())
    }


def mixed(folders, length=LENGTH, split="train", **weights):
    components = {
        name: Component(**value) if isinstance(value, dict) else Component(weight=value)
        for name, value in weights.items()
    }
    return Mixture(folders, components, split=split, sequence_length=length)


def drawn_one_by_one(shares, tokens, pieces, caps, count):
    """The slow twin: whatever is due first, ties by number. Yields the component and the number of its piece."""
    rates = np.array(shares) / (np.array(tokens) / np.array(pieces))
    rates = rates / rates.sum()
    drawn = [0] * len(rates)
    for _ in range(count):
        due = [(drawn[c] + 0.5) / rates[c] if drawn[c] < caps[c] else np.inf for c in range(len(rates))]
        if min(due) == np.inf:
            return
        component = due.index(min(due))
        yield component, drawn[component]
        drawn[component] += 1


def schedule(shares, tokens, pieces, caps):
    """A mixture of nothing but its schedule."""
    rates_C = np.array(shares) / (np.array(tokens) / np.array(pieces))
    bare = SimpleNamespace(names=shares, _rates_C=rates_C / rates_C.sum(), caps_C=np.array(caps))
    return lambda drawn, count, **more: Mixture.draw(bare, drawn, count, **more)


component_numbers = st.tuples(
    st.floats(1e-6, 1e6), st.integers(1, 10**9), st.integers(1, 10**6), st.one_of(st.just(ENDLESS), st.integers(1, 300))
)


@settings(deadline=None, max_examples=200)
@given(numbers=st.lists(component_numbers, min_size=1, max_size=8), sizes=st.lists(st.integers(1, 150), max_size=8))
def test_the_next_pieces_are_those_due_first_however_many_are_asked_for_at_once(numbers, sizes):
    columns = list(zip(*numbers, strict=True))
    draw = schedule(*columns)
    positions, drawn = [], ()
    for size in sizes:
        wanted = size
        while wanted:
            some, drawn = draw(drawn, wanted)
            if not len(some):
                assert (np.array(drawn) == columns[3]).all()
                break
            positions += some.tolist()
            wanted -= len(some)
    expected = list(drawn_one_by_one(*columns, sum(sizes)))
    assert [(p >> 48, p & (ENDLESS - 1)) for p in positions] == expected
    assert list(drawn or [0] * len(numbers)) == [Counter(c for c, _ in expected)[i] for i in range(len(numbers))]


def test_where_no_component_ends_as_many_come_as_are_asked_for():
    draw = schedule([5, 1e-5, 3, 3], [10, 1000, 7, 7], [5, 9, 7, 7], [ENDLESS] * 4)
    drawn = ()
    for count in (1, 512, 3, 128, 1000):
        positions, drawn = draw(drawn, count)
        assert len(positions) == count


def test_a_phase_that_begins_later_mixes_as_one_that_begins_the_run():
    draw = schedule([5, 30, 3], [10, 100, 7], [5, 9, 7], [ENDLESS, 4, ENDLESS])
    first, _ = draw((), 40)
    later, behind = draw((7, 100, 31), 40, since=(7, 100, 31))
    assert component_of(later).tolist() == component_of(first).tolist()
    assert sum(behind) == 7 + 100 + 31 + len(later) and behind[1] == 104
    assert (later - np.array([7, 100, 31])[component_of(later)]).tolist() == first.tolist()


def test_a_lone_component_counts_up(folders):
    positions, drawn = mixed(folders, news=3).draw((), 1000)
    assert positions.tolist() == list(range(1000)) and drawn == (1000,)


@pytest.mark.parametrize("weights", [{"news": 1, "books": 1, "poems": 1}, {"news": 0.7, "books": 0.29, "poems": 0.01}])
def test_shares_of_tokens_are_the_weights_at_any_moment(folders, weights):
    mixture = mixed(folders, **weights)
    drawn = ()
    mean = mixture.num_tokens_C / mixture.num_pieces_C
    for _ in range(60):
        _, drawn = mixture.draw(drawn, 100)
        tokens = np.array(drawn) * mean
        assert np.abs(tokens - mixture.shares_C * tokens.sum()).max() <= 2 * mean.max()
    assert mixture.shares_C.tolist() == pytest.approx([weights[n] / sum(weights.values()) for n in sorted(weights)])


def test_without_weights_every_source_ends_its_epoch_when_the_others_do(folders):
    mixture = Mixture(folders, sequence_length=LENGTH)
    assert mixture.names == ["books", "news", "poems"]
    _, drawn = mixture.draw((), int(mixture.num_pieces_C.sum()))
    assert np.abs(np.array(drawn) - mixture.num_pieces_C).max() <= 1


def test_the_order_in_which_a_recipe_names_components_does_not_matter(folders):
    one, other = mixed(folders, news=2, books=1), mixed(dict(reversed(folders.items())), books=1, news=2)
    assert one.key(3) == other.key(3)
    assert one.draw((), 50)[0].tolist() == other.draw((), 50)[0].tolist()


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({"min_tokens": 300}, lambda lengths: lengths >= 300),
        ({"max_tokens": 300}, lambda lengths: lengths <= 300),
        ({"min_tokens": 200, "max_tokens": 400}, lambda lengths: (lengths >= 200) & (lengths <= 400)),
    ],
)
def test_a_component_shows_the_documents_that_fit_and_no_others(folders, limits, fits):
    lengths = Shards.open(folders["books"]).lengths
    part = {"source": "books", "weight": 1, **limits}
    mixture = mixed(folders, part=part, news=1, zzz={"source": "books", "weight": 1})
    seen = {"part": Counter(), "news": Counter(), "zzz": Counter()}
    for component, document, start, stop in zip(*mixture.locate(np.arange(len(mixture.pieces))), strict=True):
        seen[mixture.names[component]][int(document)] += int(stop - start)
    assert seen["part"] == {d: n for d, n in enumerate(lengths.tolist()) if fits(np.array(n))}
    assert seen["zzz"] == dict(enumerate(lengths.tolist()))
    assert seen["news"] == dict(enumerate(Shards.open(folders["news"]).lengths.tolist()))
    assert mixture.document_lengths(1).tolist() == lengths[fits(lengths)].tolist()


def test_pieces_are_the_same_whether_a_component_is_filtered_or_not(folders):
    plain = mixed(folders, news=1, books=1)
    filtered = mixed(folders, news={"weight": 1, "min_tokens": 1}, books=1)
    pieces = np.arange(len(plain.pieces))
    assert [c.tolist() for c in plain.locate(pieces)] == [c.tolist() for c in filtered.locate(pieces)]


def test_scores_choose_documents(tmp_path):
    make_shards(tmp_path / "scored", [10, 20, 30, 40], scores=[0.1, 0.5, np.nan, 0.9])
    mixture = mixed({"web": tmp_path / "scored"}, length=100, good={"source": "web", "weight": 1, "min_score": 0.5})
    assert mixture.locate(np.arange(2))[1].tolist() == [1, 3]
    with pytest.raises(DataError, match=r"none of the 4 documents .* meets min_score=2 .*scores of 0.1 to 0.9"):
        mixed({"web": tmp_path / "scored"}, web={"weight": 1, "min_score": 2})


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (
            {"min_tokens": 901},
            r"component books: none of the 40 documents of .*books meets min_tokens=901 \(they have 1",
        ),
        ({"max_tokens": 99}, r"meets max_tokens=99 \(.* tokens\); change the limit"),
        ({"min_tokens": 500, "max_tokens": 400}, "meets min_tokens=500 and max_tokens=400"),
        ({"min_score": 0.5}, r"component books: min_score=0.5, and .* was built without scores; .* --score-field"),
        ({"source": "wiki"}, "names 'wiki', and the sources are news, books, poems; correct the name"),
    ],
)
def test_a_component_that_cannot_be_is_refused(folders, component, message):
    with pytest.raises(DataError, match=message) as caught:
        mixed(folders, books={"weight": 1, **component})
    assert "\n" not in str(caught.value)


def test_sources_of_different_tokenizers_are_refused_and_both_are_named(folders, tmp_path):
    other = make_shards(tmp_path / "other", [5, 6], prefix="v")
    with pytest.raises(DataError, match=r"source news \(.*\) and source other \(.*\) .* different tokenizers"):
        Mixture(
            {**folders, "other": other}, {"other": Component(weight=1), "news": Component(weight=1)}, sequence_length=9
        )
    Mixture({**folders, "other": other}, {"news": Component(weight=1)}, sequence_length=9)  # not read, not minded


def test_a_place_belongs_to_a_text_a_length_and_a_seed_and_not_to_weights_names_or_folders(folders, tmp_path):
    base = mixed(folders, news=1, books=1)
    (tmp_path / "moved").symlink_to(folders["books"])
    moved = mixed({"news": folders["news"], "elsewhere": tmp_path / "moved"}, elsewhere=5, news=1)
    assert base.key(0) == moved.key(0)
    others = [mixed(folders, length=35, news=1, books=1), mixed(folders, news=1), mixed(folders, news=1, poems=1)]
    filtered = mixed(folders, books={"weight": 1, "min_tokens": 200}, news=1)
    assert len({base.key(0), base.key(1), *(other.key(0) for other in [*others, filtered])}) == 6


def test_a_place_belongs_to_the_documents_that_a_filter_chose(tmp_path):
    # Filters that take as many documents and tokens of the same shards, and not the same ones.
    shards = make_shards(tmp_path / "scored", [10, 20, 20, 10], scores=[0.9, 0.9, 0.1, 0.1])
    part = {"source": "web", "weight": 1}
    whole = mixed({"web": shards}, length=99, web=part)
    good = mixed({"web": shards}, length=99, web={**part, "min_score": 0.5})
    make_shards(tmp_path / "other", [10, 20, 20, 10], scores=[0.1, 0.1, 0.9, 0.9])
    other = mixed({"web": tmp_path / "other"}, length=99, web={**part, "min_score": 0.5})
    assert good.key(0) != other.key(0)
    assert whole.key(0) == mixed({"web": tmp_path / "other"}, length=99, web=part).key(0)


def test_a_split_is_mixed_too(folders):
    mixture = mixed(folders, split="heldout", news=1, books=1)
    assert {len(mixture.document_lengths(component)) for component in (0, 1)} == {9}
