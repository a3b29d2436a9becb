"""The shape of the package: imports go one way, and a library's class has one owner."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"errors", "logs", "argument_checks", "argument_names", "metrics", "processors", "demo"},
    {"data", "engine"},
    {"tasks"},
    {"quality", "models", "evaluation", "baselines"},
    {"inference", "report", "serving"},
    {"training"},
    {"recipe", "api", "sklearn"},
    {"cli", "__main__", ""},  # "" is the package itself, which only hands names on
]
RECIPE_LINES = 110
LIBRARIES_OF_RECIPES = {"predict_on_ray": {"argparse", "ray", "typing"}}
OWNERS = {
    "Accelerator": {"training.accelerator"},
    "BitsAndBytesConfig": {"models.quantization"},
}
GRAB_BAGS = {"utils", "util", "common", "helpers", "misc"}
MOST_LINES = 500


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "peftcls").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = sorted((ROOT / "peftcls").rglob("*.py"))
MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything that is imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """The package's modules that a module imports; an imported name may be a module itself."""
    names = {
        name.removeprefix("peftcls").removeprefix(".")
        for name in imported(tree)
        if name.split(".")[0] == "peftcls"
    }
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def layer(module: str) -> int:
    found = [number for number, packages in enumerate(LAYERS) if package_of(module) in packages]
    assert found, f"peftcls.{module} has no layer; name its package in LAYERS"
    return found[0]


def names_in(tree: ast.AST) -> set[str]:
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found | {name.rpartition(".")[2] for name in imported(tree)}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward_only(name):
    higher = {other for other in own_imports(MODULES[name]) if layer(other) > layer(name)}
    assert not higher, f"peftcls.{name} is in layer {layer(name)}, below {sorted(higher)}"


def test_no_package_imports_itself_by_way_of_others():
    graph: dict[str, set[str]] = {}
    for name, tree in MODULES.items():
        others = {package_of(other) for other in own_imports(tree)}
        graph.setdefault(package_of(name), set()).update(others - {package_of(name)})
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: own_imports(tree) - {name} for name, tree in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_imports_that_are_checked_are_really_found():
    assert {"models.adapter_methods", "tasks.base"} <= own_imports(MODULES["training.trainer"])
    assert "metrics" in own_imports(MODULES["tasks.classification"])  # from peftcls import metrics


@pytest.mark.parametrize("class_name", OWNERS)
def test_a_class_of_another_library_has_its_owners(class_name):
    users = {name for name, tree in MODULES.items() if class_name in names_in(tree)}
    assert users, f"nothing uses {class_name}; leave it out of OWNERS"
    assert users <= OWNERS[class_name]


@pytest.mark.parametrize("library", ["peft", "bitsandbytes"])
def test_a_library_that_warns_at_its_import_is_imported_in_one_place(library):
    users = {
        name
        for name, tree in MODULES.items()
        if library in {full_name.partition(".")[0] for full_name in imported(tree)}
    }
    assert users == {"models.peft_library"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_holds_one_idea_and_is_no_grab_bag(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert not GRAB_BAGS & set(module_name(path).split("."))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_imports_the_package_alone(path):
    roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    if path.stem != "pretrain_demo_base":  # it makes what the package ships with
        assert roots == {"peftcls"} | LIBRARIES_OF_RECIPES.get(path.stem, set())
    assert len(path.read_text(encoding="utf-8").splitlines()) <= RECIPE_LINES
