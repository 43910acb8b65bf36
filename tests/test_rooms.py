"""The library's rooms: imports go down only, a module has one idea, and each room says what it knows."""

import ast
import importlib
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "sgpo_lib"
# From the ground up: a room may import those before it.
ROOMS = [
    "follower",
    "leader",
    "params",
    "data",
    "policy",
    "runs",
    "regret",
    "lab",
    "judges",
    "plan",
    "annotation",
    "evaluation",
    "steps",
    "plots",
]
LINES_OF_ONE_IDEA = 300


def room_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> list[tuple[int, str]]:
    """Line and room of every import from the library that is carried out; imports for type checkers are not."""
    tree = ast.parse(path.read_text())
    for_checkers = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {id(child) for node in for_checkers for child in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "sgpo_lib":
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sgpo_lib."):
            found.append((node.lineno, node.module.split(".")[1]))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, a.name.split(".")[1]) for a in node.names if a.name.startswith("sgpo_lib.")]
    return found


MODULES = [path for path in sorted(LIBRARY.rglob("*.py")) if path != LIBRARY / "__init__.py"]


def test_every_room_has_its_floor():
    assert {room_of(path) for path in MODULES} == set(ROOMS)


def test_imports_go_down_only():
    upwards = [
        f"{path.relative_to(LIBRARY.parent)}:{line} ({room_of(path)}) imports {room}, which stands above it"
        for path in MODULES
        for line, room in imported_rooms(path)
        if ROOMS.index(room) > ROOMS.index(room_of(path))
    ]
    assert not upwards, "\n".join(upwards)


def test_no_module_is_long_enough_to_hide_a_second_idea():
    data = {"data/builtin_prompts.py"}
    lengths = {path.relative_to(LIBRARY).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > LINES_OF_ONE_IDEA and name not in data} == {}


@pytest.mark.parametrize("room", [room for room in ROOMS if (LIBRARY / room).is_dir()])
def test_a_room_says_what_it_knows_and_what_it_does_not(room):
    said = importlib.import_module(f"sgpo_lib.{room}").__doc__
    assert "know" in said
    assert "nothing" in said or " no " in said


def test_tests_stand_in_the_rooms_that_they_test():
    for folder in (path for path in Path(__file__).parent.iterdir() if path.is_dir() and any(path.glob("test_*.py"))):
        assert folder.name in ROOMS
