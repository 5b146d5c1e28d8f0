"""How a sentence-transformers folder says that its vectors are made."""

import json

import pytest

from modernbert.errors import CheckpointError, ConfigError, UnsupportedError
from modernbert.tasks.embed import EmbedSettings

OLD = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
       "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    def make(pooling=None, modules=("Transformer", "Pooling"), prompts=None, default_prompt=None, likeness="cosine"):
        if pooling is not None:
            (tmp_path / "1_Pooling").mkdir()
            (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        listed = [{"idx": i, "path": f"{i}_{m}", "type": f"x.models.{m}"} for i, m in enumerate(modules)]
        (tmp_path / "modules.json").write_text(json.dumps(listed))
        about = {"prompts": prompts or {}, "default_prompt_name": default_prompt, "similarity_fn_name": likeness}
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(about))
        return tmp_path

    return make


@pytest.mark.parametrize(
    "config,expected",
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({**OLD, "pooling_mode_cls_token": True}, "cls"),
        ({**OLD, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_both_ways_of_writing_it_are_read(folder, config, expected):
    assert EmbedSettings.read(folder(config)).pooling == expected


def test_a_folder_that_says_nothing_takes_the_mean(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert EmbedSettings.read(tmp_path) == EmbedSettings()


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"pooling": {"pooling_mode": "lasttoken"}}, "asks for pooling lasttoken; to leave that out, say mean or cls"),
        ({"pooling": {"pooling_mode": ["cls", "mean"]}}, "asks for pooling cls + mean"),
        ({"pooling": {**OLD, "pooling_mode_max_tokens": True}}, "asks for pooling max"),
        ({"pooling": OLD}, "asks for pooling none"),
        ({"modules": ("Transformer", "Pooling", "Dense", "Normalize")}, "asks for a Dense layer, which is not computed"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}, "prompts": {"query": "q: "}}, "leaves prompts out of"),
        ({"likeness": "manhattan"}, "asks for likeness by manhattan"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(folder, arguments, message):
    with pytest.raises(UnsupportedError, match=message.replace("+", r"\+")):
        EmbedSettings.read(folder(**arguments))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"])
@pytest.mark.parametrize("contents", ["{", "3", "[1]"])
def test_a_damaged_file_is_named(folder, name, contents):
    path = folder({"pooling_mode": "cls"}) / name
    path.write_text(contents)
    with pytest.raises(CheckpointError, match=name):
        EmbedSettings.read(path.parents[name.count("/")])


def test_prompts_are_found_by_name(folder):
    found = EmbedSettings.read(folder(prompts={"query": "ask: ", "document": ""}, default_prompt="query"))
    assert [found.prefix(name) for name in (None, "query", "document")] == ["ask: ", "ask: ", ""]
    with pytest.raises(ConfigError, match="prompt='title' is none of this model's; choose among document, query"):
        found.prefix("title")


@pytest.mark.parametrize("settings", [
    EmbedSettings(),
    EmbedSettings(pooling="cls", normalize=False, likeness="dot", max_length=96, default_prompt="query",
                  prompts={"query": "ask: ", "title": "of: "}),
])  # fmt: skip
def test_what_is_written_is_what_is_read(tmp_path, settings):
    settings.write(tmp_path, width=32)
    assert EmbedSettings.read(tmp_path) == settings
