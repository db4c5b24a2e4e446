"""A build tells what it did by stamp, log and times, and leaves nothing half-done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from roots.ops.library.build import build, log_path
from roots.ops.library.ninja import unit_seconds
from roots.ops.library.stamp import read_stamp
from roots.ops.library.toolchain import BuildError
from tests.helpers.sources import ROOT
from tests.ops.library.tiny import CPU_UNITS, cpu_plan, write_sources


def test_stamp_and_log_lie_beside_the_library(tmp_path: Path) -> None:
    csrc = write_sources(tmp_path / "csrc")
    text = "namespace ROOTS_CAPABILITY {\nvoid f() { int unused; }\n}\n"
    (csrc / "cpu" / "swiglu.cpp").write_text(text, encoding="utf-8")
    plan = cpu_plan(csrc)
    library = build(plan, tmp_path / "objects", tmp_path / "out")
    assert read_stamp(library) == plan.stamp()
    content = json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["torch"] == plan.tools.torch.version
    said = log_path(library).read_text(encoding="utf-8")
    assert "== avx2/swiglu.cpp.o" in said
    assert "unused variable" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_C_cpu.json",
        "_C_cpu.log",
        "_C_cpu.so",
    ]
    seconds = unit_seconds(plan.target, tmp_path / "objects")
    assert len(seconds) == CPU_UNITS
    assert all(value >= 0 for value in seconds.values())


def test_error_of_the_compiler_is_in_the_message(tmp_path: Path) -> None:
    csrc = write_sources(tmp_path / "csrc")
    (csrc / "cpu" / "swiglu.cpp").write_text('#include "absent.h"\n', encoding="utf-8")
    with pytest.raises(BuildError) as caught:
        build(cpu_plan(csrc), tmp_path / "objects", tmp_path / "out")
    log = tmp_path / "objects" / "ninja.log"
    assert str(caught.value) == (
        f"the cpu library could not be compiled: {csrc}/cpu/swiglu.cpp:1:10: fatal error: "
        f"absent.h: No such file or directory (all of it in {log})."
    )
    assert not (tmp_path / "out").exists()


def test_error_of_the_linker_is_in_the_message(tmp_path: Path) -> None:
    csrc = write_sources(tmp_path / "csrc")
    (csrc / "cpu" / "swiglu.cpp").write_text("int twice() { return 2; }\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"multiple definition of `twice\(\)'"):
        build(cpu_plan(csrc), tmp_path / "objects", tmp_path / "out")


def test_paths_with_spaces_and_dollars(tmp_path: Path) -> None:
    folder = tmp_path / "a $b c"
    csrc = write_sources(folder / "csrc")
    assert build(cpu_plan(csrc), folder / "objects", folder / "out").is_file()


def test_folder_without_sources(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="there are no sources of the cpu library in"):
        build(cpu_plan(tmp_path), tmp_path / "objects", tmp_path / "out")


def test_developers_command_builds_some_ops_and_says_how_to_use_them(tmp_path: Path) -> None:
    csrc = write_sources(tmp_path / "csrc")
    command = [sys.executable, "-m", "roots.ops.library", "build", "cpu", "--ops", "softmax"]
    command += ["--csrc", str(csrc), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:4]] == [
        "binding/schemas.cpp.o",
        "binding/cpu_schemas.cpp.o",
        "avx2/softmax.cpp.o",
        "avx512/softmax.cpp.o",
    ]
    assert lines[-1] == f"ROOTS_KERNELS={tmp_path / 'out'} makes ROOTS use it"
