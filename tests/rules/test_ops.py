"""Every op has a reference, a list of implementations and a test file under its own name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT, files, name_of

# What serves all ops and is none itself.
SHARED = {
    "__init__",
    "attention_dropout",
    "attention_ranges",
    "dispatch",
    "huge_pages",
    "native",
    "norm",
    "status",
}
OPS = [
    path
    for path in files(".py", below=("roots/ops",))
    if path.parent.name in ("ops", "few_rows") and path.stem not in SHARED
]


def test_ops_were_found() -> None:
    assert {"attention", "layer_norm", "rms_norm", "cross_entropy"} <= {path.stem for path in OPS}


@pytest.mark.parametrize("path", OPS, ids=lambda path: path.stem)
def test_op_has_function_reference_implementations_and_test(path: Path) -> None:
    assert missing_parts(path.stem, path.read_text(encoding="utf-8")) == []
    folder = path.parent.relative_to(ROOT / "roots")
    test = ROOT / "tests" / folder / f"test_{path.stem}.py"
    assert test.is_file(), f"{name_of(path)} needs {name_of(test)}"
    assert runs_reference(path.stem, test.read_text(encoding="utf-8")), (
        f"{name_of(test)} does not run the reference"
    )


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from roots.ops.gelu import gelu, gelu_reference", True),
        ("@all_implementations\ndef test_gelu(implementation): ...", True),
        ("gelu(x, implementation='reference')", True),
        ("gelu(x, implementation='torch')", False),
    ],
)
def test_rule_knows_ways_to_run_the_reference(source: str, expected: bool) -> None:
    assert runs_reference("gelu", source) is expected


def runs_reference(stem: str, source: str) -> bool:
    """Whether a test names the reference, asks for it, or runs every implementation."""
    names: set[object] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.name)
        elif isinstance(node, ast.Constant):
            names.add(node.value)
    return bool({f"{stem}_reference", "reference", "all_implementations"} & names)


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
