"""Who may use what: torch.distributed, torch.cuda, DeepSpeed, environment variables; the layers."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT, dotted_names, files, name_of


@dataclass(frozen=True)
class Rule:
    """Names that start with `name` may be used only in files whose path matches `allowed`."""

    name: str
    allowed: str

    def broken_by(self, file: str, source: str) -> list[str]:
        """The lines of `file` that break the rule."""
        if re.fullmatch(self.allowed, file):
            return []
        pattern = re.compile(rf"{re.escape(self.name)}(\.|$)")
        lines = {line for line, name in dotted_names(ast.parse(source)) if pattern.match(name)}
        return [f"{file}:{line}: {self.name} is for {self.allowed} alone" for line in sorted(lines)]


DEEPSPEED = Rule(
    "deepspeed",
    r"roots/(training/engine/\w+|parallel/pipeline|checkpoint/zero\w*)\.py",
)
# The second is for what starts without torch.
ENVIRONMENT = r"roots/(device|launching/environment)\.py"
RULES = [
    Rule("torch.distributed", r"roots/parallel/(\w+/)?\w+\.py"),
    Rule("torch.cuda", r"roots/device\.py"),
    DEEPSPEED,
    Rule("os.environ", ENVIRONMENT),
    Rule("os.getenv", ENVIRONMENT),
    Rule("os.putenv", ENVIRONMENT),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_only_its_home_uses_it(rule: Rule) -> None:
    broken = [
        line
        for path in files(".py", below=("roots",))
        for line in rule.broken_by(name_of(path), path.read_text(encoding="utf-8"))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "source",
    [
        "import deepspeed",
        "import deepspeed as ds",
        "import deepspeed.comm",
        "from deepspeed import comm",
        "from deepspeed.runtime import zero",
        "def f():\n    import deepspeed",
    ],
)
def test_rule_sees_every_way_to_import(source: str) -> None:
    assert DEEPSPEED.broken_by("roots/models/block.py", source)
    assert not DEEPSPEED.broken_by("roots/training/engine/pipeline.py", source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "import torch\ntorch.distributed.barrier()",
        "import torch as t\nt.distributed.barrier()",
        "from torch import distributed",
        "from torch.distributed import barrier",
    ],
)
def test_rule_sees_through_aliases(source: str) -> None:
    rule = Rule("torch.distributed", r"roots/parallel/(\w+/)?\w+\.py")
    assert rule.broken_by("roots/models/block.py", source)
    assert not rule.broken_by("roots/parallel/mesh.py", source)


def test_rule_lets_similar_names_pass() -> None:
    assert not DEEPSPEED.broken_by(
        "roots/cli/config.py", "from roots.training.engine import deepspeed_json"
    )


def test_layers_hold() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed (extra `dev`)")
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


def test_no_circle_of_imports() -> None:
    edges = {module: set(_imports_of(module)) for module in MODULES}
    while ends := {module for module in edges if not edges[module] & edges.keys()}:
        for module in ends:
            del edges[module]
    assert not edges, (
        f"these files import each other in a circle, or lead into one: {sorted(edges)}"
    )


def test_circles_would_be_seen() -> None:
    assert "roots.config.run" in _imports_of("roots.config.rules.table")
    assert "roots.parallel.process" in _imports_of("roots.training.assemble")


def _module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {_module_of(path): path for path in files(".py", below=("roots",))}


def _imports_of(module: str) -> set[str]:
    """The files of ROOTS that a file names in an import, wherever in it that stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = {f"{node.module}.{item.name}" for item in node.names}
            names |= inner & MODULES.keys() or {node.module}
    return (names & MODULES.keys()) - {module}
