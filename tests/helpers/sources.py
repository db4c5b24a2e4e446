"""The repository's own files, for the tests that enforce its rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where code lives; whatever else lies in a checkout (environments, builds, runs) is not ours.
FOLDERS = ("roots", "csrc", "launch", "tests", "configs", "docker", "docs")


def files(*suffixes: str, below: tuple[str, ...] = FOLDERS) -> list[Path]:
    """All files below the folders whose names end in one of `suffixes`, sorted."""
    found = [path for folder in below for path in (ROOT / folder).rglob("*") if path.is_file()]
    if "." not in below and below == FOLDERS:
        found += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(path for path in found if path.name.endswith(suffixes))


def configs() -> list[Path]:
    """All configs of runs; configs/evaluation holds task files, which are lm_eval's."""
    return [
        path
        for path in files(".yaml", below=("configs",))
        if ROOT / "configs" / "evaluation" not in path.parents
    ]


def name_of(path: Path) -> str:
    """Path from the top of the repository, as messages and rules spell it."""
    return path.relative_to(ROOT).as_posix()


def dotted_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """All (line, name) that a module imports or reads as an attribute chain.

    `import a.b`, `from a import b` and `a.b` each give "a.b"; `import a.b as c` binds c to "a.b",
    and a later `c.d` gives "a.b.d", so that an alias hides nothing.
    """
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                if item.asname:
                    aliases[item.asname] = item.name
                yield node.lineno, item.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for item in node.names:
                aliases[item.asname or item.name] = f"{node.module}.{item.name}"
                yield node.lineno, f"{node.module}.{item.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = _chain(node)
            if chain:
                head, *rest = chain
                yield node.lineno, ".".join([aliases.get(head, head), *rest])


def _chain(node: ast.expr) -> list[str] | None:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        start = _chain(node.value)
        return None if start is None else [*start, node.attr]
    return None
