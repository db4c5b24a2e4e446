"""Help, config and planner are there at once: they never load torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from tests.helpers.sources import ROOT

HELP_CPU_SECONDS = 0.5
HEAVY = ("torch", "deepspeed", "numpy", "pyarrow", "transformers", "matplotlib")

_SCRIPT = """
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {statement}
print(json.dumps(sorted(set({heavy!r}) & set(sys.modules))))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import roots, roots.errors, roots.log",
        "import roots.config, roots.planner",
        "import roots.launching.host_facts, roots.launching.allocation, roots.cli.launch",
        "import roots.doctor.conduct, roots.doctor.agent, roots.doctor.text, roots.cli.doctor",
        "import roots.checkpoint.entries, roots.checkpoint.retention",
        "import roots.training.report.page",
        "from roots.cli.main import main; main(['--help'])",
        "from roots.cli.main import main; main(['train', '--help'])",
        "from roots.cli.main import main; main(['config', 'show', 'configs/model/tiny.yaml'])",
        "from roots.cli.main import main; main(['config', 'schema'])",
    ],
)
def test_starts_without_heavy_modules(statement: str) -> None:
    script = _SCRIPT.format(statement=statement, heavy=HEAVY)
    assert json.loads(_run(["-c", script])) == []


# What compiles graphs costs more than a second of a start that compiles none.
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")


@pytest.mark.parametrize(
    "module",
    [
        "roots.ops",
        "roots.generation.load",
        "roots.training.assemble",
        "roots.exchange.hf.importing",
    ],
)
def test_starts_without_the_compiler(module: str) -> None:
    script = _SCRIPT.format(statement=f"import {module}", heavy=COMPILER)
    assert json.loads(_run(["-c", script])) == []


def test_probe_sees_a_heavy_module() -> None:
    assert json.loads(_run(["-c", _SCRIPT.format(statement="import numpy", heavy=HEAVY)])) == [
        "numpy"
    ]


def test_help_is_quick() -> None:
    # CPU time, and the best of three: other load on the machine is not the program's fault.
    seconds = min(_cpu_seconds(["-m", "roots.cli.main", "--help"]) for _ in range(3))
    assert seconds < HELP_CPU_SECONDS


def _cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage" in _run(arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _run(arguments: list[str]) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return result.stdout
