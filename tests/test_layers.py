"""The shape of the package: imports go downward, files stay small, a library's class has one owner."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    {"rows", "parsers", "schema", "metrics", "plan", "bins", "schedule", "settings", "config", "demo", "fingerprint", "signals", "faults",
     "memory"},
    {"packing", "lora", "pooling", "processor", "prefix", "states", "trunk", "tasks", "shapes", "check", "doctor", "features", "evaluation",
     "split"},
    {"folder_check", "models", "sharing", "methods", "adapt", "adapters", "routing", "one_base", "summary", "launch", "folder_facts",
     "card"},
    {"predictor", "many", "checkpoint", "recording", "gradients", "rehearsal", "frozen", "trainer", "folds", "sweeps", "learning_on",
     "reload_check", "merge", "answer_files"},
    {"baselines", "report", "recipe", "cli"},
    {"", "api", "__main__"},  # the package itself, which only hands names on
]
LINES, LONGER = 300, {"trainer.py": 400}
RECIPE_LINES = 80
OWNERS = {"Accelerator": {"trainer", "checkpoint"}, "BitsAndBytesConfig": {"models"}}
GRAB_BAGS = {"utils", "util", "common", "helpers", "misc"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "peftcls").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "peftcls").rglob("*.py"))}
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything that is imported, also inside functions; a name from a module may be a module itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """The package's modules that a module imports."""
    names = {name.removeprefix("peftcls").removeprefix(".") for name in imported(tree) if name.split(".")[0] == "peftcls"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def floor(name: str) -> int:
    found = [number for number, names in enumerate(FLOORS) if {name, name.partition(".")[0]} & names]
    assert found, f"peftcls.{name} has no floor; name it in FLOORS"
    return found[0]


def names_in(tree: ast.AST) -> set[str]:
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found | {name.rpartition(".")[2] for name in imported(tree)}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward_only(name):
    higher = {other for other in own_imports(MODULES[name]) if floor(other) > floor(name)}
    assert not higher, f"peftcls.{name} is on floor {floor(name)} and imports {sorted(higher)} from above"


def test_no_module_imports_itself_by_way_of_others():
    list(graphlib.TopologicalSorter({name: own_imports(tree) - {name} for name, tree in MODULES.items()}).static_order())


def test_the_imports_that_are_checked_are_really_found():
    assert {"models", "predictor", "tasks.base"} <= own_imports(MODULES["trainer"])
    assert {"metrics", "rows"} <= own_imports(MODULES["tasks.classification"])  # from peftcls import metrics


@pytest.mark.parametrize("class_name", OWNERS)
def test_a_class_of_another_library_has_its_owners(class_name):
    users = {name for name, tree in MODULES.items() if class_name in names_in(tree)}
    assert users, f"nothing uses {class_name}; leave it out of OWNERS"
    assert users <= OWNERS[class_name]


@pytest.mark.parametrize("path", sorted((ROOT / "peftcls").rglob("*.py")), ids=module_name)
def test_a_file_is_short_and_is_no_grab_bag(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGER.get(path.name, LINES)
    assert not GRAB_BAGS & set(module_name(path).split("."))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_imports_the_package_alone(path):
    roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    if path.stem != "pretrain_demo_base":  # it makes what the package ships with, from transformers and tokenizers
        assert roots == {"peftcls"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= RECIPE_LINES
