"""What is refused or remarked upon of a recipe and its text, before anything is trained."""

import pytest
from tiny_run import build_tiny_shards, recipe

from modernbert.errors import DataError
from modernbert.preflight import check_text, open_sources
from modernbert.train.recipe import PretrainRun


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for name in ("one", "other"):
        (folder / name).mkdir()
    return {name: str(build_tiny_shards(folder / name, seed)) for seed, name in enumerate(("one", "other"))}


def run_of(folders, **options):
    return PretrainRun.parse(recipe(None, **options) | {"data": {"sources": folders}})


def test_a_source_of_another_tokenizer_is_refused_although_no_phase_reads_it(folders):
    run = run_of(folders, phase={"mixture": {"one": 1}})
    check_text(run)
    with pytest.raises(DataError, match=r"source one \(.*one/shards\) and source other \(.*\) .* different tokenizers"):
        open_sources(run)


@pytest.mark.parametrize(("steps", "told"), [(20, False), (200, True)])
def test_a_source_that_all_phases_together_repeat_is_told_of(folders, steps, told):
    halves = [{"name": name, "tokens": "50%", "mixture": {"one": 1}} for name in ("first", "second")]
    remarks = check_text(run_of(folders, steps=steps, phases=halves))
    assert [remark.startswith("one is read ") and "unique text" in remark for remark in remarks] == [True] * told
