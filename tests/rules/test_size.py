"""Files stay within 400 lines, functions within 60 lines and six positional parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.sources import files, name_of

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6


def test_files_are_short() -> None:
    lengths = {name_of(path): _count_lines(path) for path in _sources()}
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}
    assert not too_long, f"split these files, {MAX_FILE_LINES} lines is the limit: {too_long}"


def test_functions_are_short() -> None:
    found = [problem for path in files(".py") for problem in _problems_in(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("def f(a, b, c, d, e, f): pass", []),
        ("def f(a, b, c, d, e, f, g): pass", ["f has 7 positional parameters"]),
        ("def f(a, *, b, c, d, e, f, g): pass", []),
        ("class C:\n def m(self, a, b, c, d, e, f): pass", []),
        ("def f():\n" + " pass\n" * 59, []),
        ("def f():\n" + " pass\n" * 60, ["f has 61 lines"]),
    ],
)
def test_rule_counts_lines_and_parameters(source: str, expected: list[str]) -> None:
    assert [problem for _, problem in _function_problems(ast.parse(source))] == expected


def _sources() -> list[Path]:
    return files(".py", ".pyi", ".sh", ".sbatch", ".cpp", ".cu", ".cuh", ".h")


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _problems_in(path: Path) -> Iterator[str]:
    for line, problem in _function_problems(ast.parse(path.read_text(encoding="utf-8"))):
        yield f"{name_of(path)}:{line}: {problem}"


def _function_problems(tree: ast.Module) -> Iterator[tuple[int, str]]:
    methods = {
        id(member)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for member in node.body
    }
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {lines} lines"
        # self and cls are not counted, and what a test takes are fixtures and cases.
        parameters = len(node.args.posonlyargs) + len(node.args.args) - (id(node) in methods)
        if parameters > MAX_PARAMETERS and not node.name.startswith("test_"):
            yield node.lineno, f"{node.name} has {parameters} positional parameters"
