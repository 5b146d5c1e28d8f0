"""The architecture, kept by reading every import: a stage uses itself and earlier ones, never a later one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "modernbert"
ORDER = (
    *("errors", "disk", "patience", "remote", "console", "settings", "batch", "ranks", "runtime", "text", "data"),
    *("model", "losses", "tasks", "train", "retrieval", "dropin", "compress", "evaluate", "convert", "serve"),
    *(
        "preflight",
        "pretraining",
        "taskdata",
        "finetuned",
        "finetuning",
        "finetune_files",
        "teaching",
        "embedding",
        "predicting",
        "searching",
        "suites",
        "planning",
        "uploading",
        "publication",
        "publishing",
        "runs",
    ),
    *("passages", "functions", "quickstart", "doctor", "__main__"),
)
VERSION = ("modernbert", "__version__")  # the one name below every stage: checkpoints say who wrote them
FRONT_DOOR = "dropin"  # what `import modernbert` reaches
CORE = ("errors", "batch", "model", "tasks")
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """modernbert/text/read.py -> text.read; a stage's own `__init__` -> the stage."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports_of(source):
    """(module, name, line) of each import in a source, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name, node.lineno) for alias in node.names)


def faults(stage, source):
    """What a module of this stage imports and must not."""
    found = []
    for module, name, line in imports_of(source):
        if module.startswith("."):
            found.append(f"line {line}: {module} is relative; write modernbert.{stage}")
        elif module.split(".")[0] == "modernbert" and (module, name) != VERSION:
            target = (*module.split(".")[1:], name)[0]
            target = target if target in ORDER else FRONT_DOOR
            if ORDER.index(target) > ORDER.index(stage):
                found.append(f"line {line}: {stage} imports {target}, which comes later")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_stage_imports_itself_and_earlier_ones_only(path):
    if path == PACKAGE / "__init__.py":
        return  # the front door: what it offers comes from where it must
    stage = name_of(path).split(".")[0]
    assert stage in ORDER, f"{stage} has no place in the order"
    assert faults(stage, path.read_text()) == []


@pytest.mark.parametrize(
    ("stage", "source", "fault"),
    [
        ("text", "from modernbert.model import hub", "text imports model"),
        ("model", "import modernbert.tasks.mlm", "model imports tasks"),
        ("data", "def f():\n    from modernbert.train.loop import fit", "line 2: data imports train"),
        ("train", "from modernbert import runs", "train imports runs"),
        ("model", "from modernbert import load", "model imports dropin"),
        ("text", "import modernbert as m", "text imports dropin"),
        ("tasks", "from . import base", "relative"),
        ("text", "if 1:\n  try:\n    import modernbert.data\n  except ImportError: pass", "line 3"),
    ],
)
def test_an_import_of_a_later_stage_is_seen(stage, source, fault):
    (found,) = faults(stage, source)
    assert fault in found


def test_an_import_of_an_earlier_stage_is_none_of_its_business():
    assert faults("model", "import torch\nfrom modernbert.batch import IGNORE\nfrom modernbert.model import hub") == []
    assert faults("model", "from modernbert import __version__") == []
    assert faults("runs", "import modernbert") == []


def test_the_front_door_reaches_no_further_than_the_dropin():
    assert faults(FRONT_DOOR, (PACKAGE / "__init__.py").read_text()) == []


def test_no_stage_is_forgotten_in_the_order():
    stages = {name_of(path).split(".")[0] for path in MODULES} - {"__init__"}
    assert stages <= set(ORDER)


def test_no_code_folder_is_inside_another():
    assert {len(path.relative_to(PACKAGE).parts) for path in MODULES} == {1, 2}


def test_no_module_is_named_after_nothing():
    names = {part for path in MODULES for part in name_of(path).split(".")}
    assert not {name for name in names if name.strip("_") in {"utils", "util", "common", "helpers", "helper", "misc"}}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def modules_after(statement):
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    return set(done.stdout.split())


def test_importing_the_package_brings_nothing_heavier_than_torch():
    heavy = {"transformers", "matplotlib", "pydantic", "typer", "optimi", "rich", "datasets", "sklearn", "pandas"}
    assert not heavy & modules_after("import modernbert")


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).split(".")[0] in CORE], ids=name_of)
def test_batch_model_and_tasks_need_only_torch_numpy_safetensors_and_tokenizers(path):
    packages = {module.partition(".")[0] for module, _, _ in imports_of(path.read_text())} - set(
        sys.stdlib_module_names
    )
    assert packages <= {"torch", "numpy", "safetensors", "tokenizers", "modernbert", "huggingface_hub"}
