"""Every op has a reference, a list of implementations and a test file under its own name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT, files, name_of

# What serves all ops and is none itself.
SHARED = {"__init__", "dispatch", "status"}
OPS = [path for path in files(".py", below=("roots/ops",)) if path.stem not in SHARED]


def test_ops_were_found() -> None:
    assert {"attention", "layer_norm", "rms_norm", "cross_entropy"} <= {path.stem for path in OPS}


@pytest.mark.parametrize("path", OPS, ids=lambda path: path.stem)
def test_op_has_function_reference_implementations_and_test(path: Path) -> None:
    assert missing_parts(path.stem, path.read_text(encoding="utf-8")) == []
    test = ROOT / "tests" / "ops" / f"test_{path.stem}.py"
    assert test.is_file(), f"{name_of(path)} needs {name_of(test)}"
    names = {
        node.id if isinstance(node, ast.Name) else node.name
        for node in ast.walk(ast.parse(test.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Name, ast.alias))
    }
    # By name, or by running every implementation, of which the reference is one.
    compared = {f"{path.stem}_reference", "all_implementations", "IMPLEMENTATIONS"} & names
    assert compared, f"{name_of(test)} does not run the reference"


def test_rule_names_what_is_missing() -> None:
    complete = (
        "def gelu(x): ...\ndef gelu_reference(x): ...\nIMPLEMENTATIONS: tuple[int, ...] = (1,)\n"
    )
    assert missing_parts("gelu", complete) == []
    assert missing_parts("gelu", "def gelu(x): ...") == ["gelu_reference", "IMPLEMENTATIONS"]


def missing_parts(stem: str, source: str) -> list[str]:
    """Top-level names that the op file of `stem` lacks."""
    defined: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {item.id for item in node.targets if isinstance(item, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    wanted = [stem, f"{stem}_reference", "IMPLEMENTATIONS"]
    return [name for name in wanted if name not in defined]
