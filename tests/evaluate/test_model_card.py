"""A run's model card: what it takes from the run, and that nothing in a run breaks its Markdown."""

import re

import fake_run
from huggingface_hub import ModelCard

from modernbert.evaluate import run_report
from modernbert.evaluate.model_card import Published, Source, Story, cell, render

ABOUT = {
    "what": {
        "parameters": 17_000_000, "preset": "tiny", "positions": 8192, "window": 128, "layers": "Gll" * 2 + "G",
        "shape": {"num_hidden_layers": 7, "hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4},
        "rope_bases": {"global": 160_000.0, "local": 10_000.0}, "tokenizer_ids": 50_280,
    },
    "training": {"decayed": False, "share_of_rate_left": 1.0},
}  # fmt: skip


def card(run, **changes):
    """The card of the fake run's last checkpoint on `main`."""
    found = run_report.report(run, reference="none")
    last = found["checkpoints"][-1]
    own = Published(last["name"], "stable-50M-tokens", "stable", last["step"], last["tokens"])
    story = {
        "repo": "owner/name", "found": found, "about": {own.checkpoint: ABOUT}, "recipe": found["recipe"],
        "sources": [Source(name, "0123456789abcdef", None) for name in fake_run.SOURCES], "revisions": [own],
    }  # fmt: skip
    return render(Story(**{**story, **changes}), own.checkpoint, None)


def rows_under(text, heading):
    """Cells of the tables in a chapter."""
    chapter = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in chapter.splitlines() if line.startswith("|")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_each_phase_has_its_recipe_and_its_losses(tmp_path):
    text = card(fake_run.write_fake_run(tmp_path / "run", 300))
    recipe = rows_under(text, "How it was trained")
    assert [row[0] for row in recipe[2:]] == ["stable", "extend", "anneal"]
    assert recipe[3][2] == "8,192" and recipe[4][7] == "30% → 10%"
    results = rows_under(text, "Held-out results")
    by_source = results.index(next(row for row in results if row[0] == "held-out loss"))
    assert [row[0] for row in results[2:by_source]] == ["stable", "extend", "anneal"]
    assert results[by_source] == ["held-out loss", "stable", "extend", "anneal"]
    for row in [*results[2:by_source], *results[by_source + 2 :]]:
        assert all(re.fullmatch(r"[\d.,]+.*", part) for part in row[1:])
    assert len(results) == by_source + 2 + len(fake_run.SOURCES)


def test_tables_have_as_many_cells_in_each_row(tmp_path):
    text = card(fake_run.write_fake_run(tmp_path / "run", 300))
    for heading in ("How it was trained", "Data", "Held-out results", "Hardware, time and versions", "Revisions"):
        widths = []
        for row in rows_under(text, heading):
            if row[0] == "held-out loss":
                widths = []
            widths.append(len(row))
            assert len(set(widths)) == 1


def test_names_from_a_run_are_text_and_no_markup(tmp_path):
    text = card(fake_run.write_fake_run(tmp_path / "run", 300))
    prose = text.partition("<details>")[0] + text.partition("</details>")[2]
    assert "<b>" not in prose and "books &amp; &lt;b&gt;prose&lt;/b&gt;" in prose
    assert cell("a|b\n`c` *d* [e](f)") == r"a\|b \`c\` \*d\* \[e\](f)"


def test_an_unfinished_run_and_a_rate_that_is_left_are_said(tmp_path):
    text = card(fake_run.write_fake_run(tmp_path / "run", 300, stop_at=0.5))
    assert "The run was not finished" in text and "a checkpoint to go on from" in text
    assert "base-continue" in text and "annealed-continue" not in text


def test_a_run_of_an_older_version_has_a_card_too(tmp_path):
    text = card(fake_run.write_fake_run(tmp_path / "run", 300, older=True))
    assert ModelCard(text).data.to_dict()["library_name"] == "transformers"
    assert [row[0] for row in rows_under(text, "Held-out results")[2:]] == ["stable", "extend", "anneal"]


def test_processes_on_one_processor_are_no_processors(tmp_path):
    found = run_report.report(fake_run.write_fake_run(tmp_path / "run", 300), reference="none")
    for place in (found["environment"], *(session["environment"] for session in found["sessions"])):
        place |= {"device_count": 4, "hosts": 2, "threads": 3}
    text = card(tmp_path / "run", found=found)
    told = dict(rows_under(text, "Hardware, time and versions")[2:])
    assert told["hardware"] == "cpu (Imagined CPU 9000)" and told["processes"] == "4 on 2 hosts, 3 threads each"
    assert "torchrun --nnodes 2 --nproc-per-node 2 -m modernbert pretrain recipe.toml --out RUN" in text


def test_all_hardware_of_a_run_is_told(tmp_path):
    run = fake_run.write_fake_run(tmp_path / "run", 300)
    found = run_report.report(run, reference="none")
    found["sessions"][1]["environment"] |= {"device": "cuda (Another)", "device_count": 8}
    told = dict(rows_under(card(run, found=found), "Hardware, time and versions")[2:])
    assert told["hardware"] == "cpu (Imagined CPU 9000), 8 × cuda (Another)" and told["sessions"] == "2"
