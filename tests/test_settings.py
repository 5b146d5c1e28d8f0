"""Settings: how a change is written, and that a refusal names the value, the limit and the remedy in one line."""

import pytest
from pydantic import Field

from modernbert.errors import ConfigError
from modernbert.settings import Settings, override, read_recipe, recipe_names


class Part(Settings):
    share: float = Field(1.0, gt=0, le=1)
    name: str = "a"


class Whole(Settings):
    seed: int = Field(0, ge=0)
    part: Part = Part()
    spare: Part | None = None
    parts: list[Part] = Field([])
    sizes: list[int] = Field([])


def refusal(values, cls=Whole):
    with pytest.raises(ConfigError) as caught:
        cls.parse(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "assignment,expected",
    [
        ("seed=3", 3),
        ("seed=1_000", 1000),
        ("seed=1e-3", 0.001),
        ("seed=true", True),
        ("seed = 3 ", 3),
        ("seed=[1, 2]", [1, 2]),
        ('seed="5"', "5"),
        ("seed=5%", "5%"),
        ("seed=a/b.c", "a/b.c"),
        ("seed=a=b", "a=b"),
        ("seed=C:\\new", "C:\\new"),
        ("seed=", ""),
        ("seed=two words", "two words"),
        ('seed={name = "b"}', {"name": "b"}),
    ],
)
def test_a_value_is_read_as_toml_and_otherwise_as_text(assignment, expected):
    found = override({}, [assignment])["seed"]
    assert found == expected and type(found) is type(expected)


def test_a_path_reaches_into_sections_and_lists_and_makes_sections_that_are_missing():
    values = {"a": {"b": 1}, "phases": [{"lr": 1}, {"lr": 2}], "sizes": [1, 2]}
    changed = override(values, ["a.b=2", "a.c=3", "new.deep.key=4", "phases.1.lr=5", "sizes.0=6", "a.b=7"])
    assert changed == {
        "a": {"b": 7, "c": 3},
        "new": {"deep": {"key": 4}},
        "phases": [{"lr": 1}, {"lr": 5}],
        "sizes": [6, 2],
    }
    assert values == {"a": {"b": 1}, "phases": [{"lr": 1}, {"lr": 2}], "sizes": [1, 2]}


@pytest.mark.parametrize(
    "assignment,message",
    [
        ("seed", "'seed' is no setting; write section.key=value"),
        ("=3", "'=3' is no setting; write section.key=value"),
        ("phases.2.lr=1", "phases.2.lr: '2' is no index of a list of 2; count from 0"),
        ("phases.-1.lr=1", "phases.-1.lr: '-1' is no index"),
        ("phases.stable.lr=1", "phases.stable.lr: 'stable' is no index"),
        ("phases.2=1", "phases.2: '2' is no index"),
        ("seed.x=1", "seed.x: there is nothing below 0"),
        ("seed.x.y=1", "seed.x.y: there is nothing below 0"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(assignment, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        override({"seed": 0, "phases": [{"lr": 1}, {"lr": 2}]}, [assignment])


def test_a_superscript_is_no_index():
    with pytest.raises(ConfigError):
        override({"phases": [{"lr": 1}]}, ["phases.².lr=1"])


def test_an_unknown_key_names_its_place_and_the_nearest_known_one():
    assert refusal({"sede": 1}) == (
        "sede: unknown key; did you mean 'seed'? known here: seed, part, spare, parts, sizes"
    )
    assert refusal({"part": {"shore": 1}}) == "part.shore: unknown key; did you mean 'share'? known here: share, name"
    assert (
        refusal({"parts": [{}, {"nome": 1}]})
        == "parts.1.nome: unknown key; did you mean 'name'? known here: share, name"
    )
    assert refusal({"spare": {"zzz": 1}}) == "spare.zzz: unknown key; known here: share, name"


def test_a_value_of_the_wrong_kind_or_range_is_named_with_its_limit():
    assert refusal({"seed": -1}) == "seed=-1: input should be greater than or equal to 0"
    assert refusal({"seed": "many"}).startswith("seed='many': input should be a valid integer")
    assert refusal({"seed": 1.5}).startswith("seed=1.5: input should be a valid integer")
    assert refusal({"part": {"share": 2}}) == "part.share=2: input should be less than or equal to 1"
    assert refusal({"parts": [{"share": 0}]}) == "parts.0.share=0: input should be greater than 0"
    assert refusal({"part": 3}).startswith("part=3: ")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Whole().seed = 3


def test_a_recipe_is_found_by_name_or_by_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seed = 4\n")
    assert read_recipe(path) == read_recipe(str(path)) == {"seed": 4}
    bare = tmp_path / "mine"
    bare.write_text("seed = 5\n")
    assert read_recipe(bare) == {"seed": 5}
    for name in recipe_names():
        assert read_recipe(name)["phases"]


@pytest.mark.parametrize(
    "name,message",
    [
        ("quickstrat", "quickstrat: no such recipe or file; did you mean 'quickstart'\\? recipes are .*quickstart"),
        ("zzz", "zzz: no such recipe or file; recipes are "),
        ("nowhere/mine.toml", "nowhere/mine.toml: no such recipe file"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(name, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_recipe(name)


def test_a_recipe_that_is_not_toml_is_refused_with_the_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seed = 4\nloop = = 3\n")
    with pytest.raises(ConfigError, match=r"mine.toml is not valid TOML: .*line 2"):
        read_recipe(path)


def test_a_recipe_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError):
        read_recipe(path)
