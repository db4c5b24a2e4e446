"""The shape of the repository: folders, mirrored tests, configs that resolve, plain text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from roots.config import load_config
from tests.helpers.sources import FOLDERS, ROOT, configs, files, name_of

TEST_FOLDERS_WITHOUT_PACKAGE = {
    "bench",
    "cluster",
    "contracts",
    "cuda",
    "docs",
    "faults",
    "golden",
    "helpers",
    "images",
    "integration",
    "launch",
    "planted",
    "rules",
    "simulator",
}
CONFIGS = configs()
TEST_FILES = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "tests"]
MAX_MODULES = 20
UNWANTED_NAMES = re.compile(r"(utils?|helpers?|misc|common|managers?)\.py")


def test_packages_and_tests_mirror_each_other() -> None:
    packages = {path.parent.name for path in (ROOT / "roots").glob("*/__init__.py")}
    tests = {path.relative_to(ROOT / "tests").parts[0] for path in TEST_FILES}
    assert packages - tests == set(), "these packages have no tests"
    assert tests - packages - TEST_FOLDERS_WITHOUT_PACKAGE == set(), "these tests have no package"


def test_rooms_hold_at_most_about_twenty_modules() -> None:
    rooms: dict[str, int] = {}
    for path in files(".py", below=("roots",)):
        rooms[name_of(path.parent)] = rooms.get(name_of(path.parent), 0) + 1
    full = {room: count for room, count in rooms.items() if count > MAX_MODULES}
    assert not full, f"a prefix that several of their files share wants a room of its own: {full}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: name_of(path))
def test_config_resolves(path: Path) -> None:
    assert load_config(path).run.name


def test_configs_were_found() -> None:
    assert {"configs/base.yaml", "configs/run/quickstart.yaml"} <= set(map(name_of, CONFIGS))


def test_code_is_ascii() -> None:
    suffixes = (".py", ".pyi", ".cpp", ".cu", ".h", ".sh", ".sbatch", ".yaml", ".toml", ".md")
    found = [
        f"{name_of(path)}:{number}"
        for path in files(*suffixes)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if not line.isascii()
    ]
    assert not found, f"characters beyond ASCII: {found}"


def test_modules_say_what_they_are() -> None:
    for path in files(".py", below=("roots", "launch", "tests")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} has no docstring"


def test_no_module_is_a_drawer() -> None:
    bad = [name_of(path) for path in files(".py") if UNWANTED_NAMES.fullmatch(path.name)]
    assert not bad, f"name these after what they do: {bad}"


def test_nothing_is_left_for_later() -> None:
    # Joined, so that this file does not find itself.
    words = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"]))
    found = [
        f"{name_of(path)}:{number}"
        for path in files(".py", ".cpp", ".cu", ".h", ".sh", ".sbatch", ".yaml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert not found, f"unfinished: {found}"


def test_no_global_statement() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in files(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Global)
    ]
    assert not found, f"module-level state: {found}"


def test_tests_do_not_sleep() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in files(".py", below=("tests",))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}
    ]
    assert not found, f"wait for an event instead: {found}"


def test_top_level_is_fixed() -> None:
    here = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name in FOLDERS}
    assert here == set(FOLDERS)
