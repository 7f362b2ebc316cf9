"""The house: imports go one way, private names stay in one file, one file and one line add a thing."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

from tests.oracles.imports import PACKAGE, graph_of, rings

# From the bottom to the top: a file imports from the floors below its own, and from its own.
FLOORS = (
    ("compat",),
    ("ranks", "layers"),
    ("statistics",),
    ("preconditioners",),
    ("update",),
    ("config", "schedule", "join"),
    ("insight", "state"),
    ("optimizer", "family"),
    ("integrations", "report"),
    ("compare",),
    ("cli",),
    ("",),  # the package itself
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_file_has_a_floor():
    assert {room(module) for module in graph_of(PACKAGE)} == set(FLOOR_OF)


def test_there_is_no_circle():
    """Lazy imports inside functions and those for type checkers count."""
    assert rings(graph_of(PACKAGE)) == []


def test_no_import_goes_up():
    graph = graph_of(PACKAGE)
    up = [(a, b) for a, targets in graph.items() for b in targets if FLOOR_OF[room(b)] > FLOOR_OF[room(a)]]
    assert up == []


def test_the_tests_see_what_they_are_for(tmp_path):
    (tmp_path / "low.py").write_text("def f():\n    from .high import g\n")
    (tmp_path / "high.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import low\n")
    (tmp_path / "__init__.py").write_text("")
    assert rings(graph_of(tmp_path)) == [("high", "low")]


def test_the_picture_of_the_house_is_current():
    generator = runpy.run_path(str(PACKAGE.parents[1] / "docs/generate_house.py"))
    picture = (PACKAGE.parents[1] / "docs/assets/house.svg").read_text()
    assert generator["draw"](PACKAGE)[0] == picture, "run python docs/generate_house.py"


def test_few_files_lie_loose_at_the_top():
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert loose == {"compat", "join", "optimizer", "ranks", "schedule", "state"}


def test_no_file_is_long():
    assert {str(p): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400} == {}


def test_nobody_asks_which_structure_or_mode_it_is():
    """A preconditioner says what it needs; only its own file may look at the option that made it."""
    asked = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "preconditioners":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                names = {getattr(side, "attr", getattr(side, "id", None)) for side in sides}
                asked += (
                    [(path.name, node.lineno)] if names & {"mode", "structure", "second_moment", "estimator"} else []
                )
    assert asked == []


OWN = ("self", "cls", "super")
# Documented by their libraries although they start with an underscore.
DOCUMENTED = {"_asdict", "_replace", "_fields", "_name_", "_value_", "_metadata"}


def private_uses(path: Path) -> set[str]:
    """Names with one leading underscore that a file takes from somewhere else than itself and the package."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            base = node.value
            own = isinstance(base, ast.Name) and base.id in OWN
            own = own or (isinstance(base, ast.Call) and getattr(base.func, "id", "") == "super")
            if not own:
                found.add(node.attr)
        if isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"}
    return found


def defined_in_the_package() -> set[str]:
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OWN:
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_others_are_in_compat_alone(path):
    if path.name != "compat.py":
        assert private_uses(path) - defined_in_the_package() - DOCUMENTED == set()
