"""Imports go one way: a room knows only those below it, and no two modules know each other. Tests mirror modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_distinct

PACKAGE = Path(hf_distinct.__file__).parent
TESTS = Path(__file__).parent
SPANNING = {"distributed", "end_to_end", "faults", "models"}  # tests of more than one module
# From the bottom to the top; those of a line do not know each other.
ROOMS = [
    {"text", "losses", "settings", "families", "_moved"},
    {"files", "fast"},
    {"clip", "captioner"},
    {"scorer", "distributed"},
    {"evaluation", "config", "discriminator"},
    {"data"},
    {"generation", "rewards"},
    {"gallery", "inference", "reporting"},
    {"hub"},
    {"training"},
    {"trainer", "runs"},
    {"cli"},
]
ROOM = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}


def modules() -> dict[str, Path]:
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "modules"]
    return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in files}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of this package that a file imports, wherever in it, also for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            while name.startswith("hf_distinct."):
                if found := {name, f"{name}.__init__"} & known.keys():
                    yield from found
                    break
                name = name.rpartition(".")[0]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imports(path, known)) - {name} for name, path in known.items()}


def test_no_two_modules_know_each_other(graph):
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_every_room_knows_only_those_below_it(graph):
    rooms = {name: name.split(".")[1] for name in graph}
    assert set(rooms.values()) - {"__init__"} == set(ROOM)
    upward = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if rooms[name] not in ("__init__", rooms[other]) and ROOM[rooms[name]] <= ROOM[rooms[other]]
    ]
    assert not upward


def test_no_file_is_too_long():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_each_test_file_lies_where_its_module_does():
    """One of a package's __init__.py, or of what all modules of a folder hold to, has the name of the folder."""
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    modules |= {path.relative_to(TESTS.parent) for path in (TESTS.parent / "recipes").rglob("*.py")}
    subjects = {path.with_name(path.stem.strip("_")) for path in modules}
    subjects |= {path.parent / path.parent.name for path in modules}
    subjects |= {Path("hf_distinct"), Path("imports"), Path("pages")}
    files = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    lost = {path for path in files if path.with_name(path.stem.removeprefix("test_")) not in subjects}
    assert {str(path) for path in lost if path.parts[0] not in SPANNING} == set()
