"""Kept objects: compiled once, known by everything that they are made from."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from pathlib import Path

import pytest

from roots.ops.library.build import Plan
from roots.ops.library.toolchain import Toolchain
from tests.ops.library.tiny import CPU_UNITS, cpu_plan, write_sources
from tests.simulator.objects import KeptObjects, included_files

# What may change, and of how many units the object is another one then.
CHANGES = {
    "binding/swiglu.cpp": 1,
    "common.h": 1,
    "schemas.h": 2,
    "cpu/softmax.cpp": 2,
    "cuda/swiglu.cu": 0,
}


def paths(kept: KeptObjects, plan: Plan) -> set[Path]:
    return {kept.path(unit, plan) for unit in plan.target.units}


def test_library_of_kept_objects_is_built_without_a_source(tmp_path: Path) -> None:
    plan = cpu_plan(write_sources(tmp_path / "csrc"))
    kept = KeptObjects(tmp_path / "kept")
    assert len(kept.missing(plan)) == CPU_UNITS
    kept.build(plan, tmp_path / "objects", tmp_path / "out")
    assert sorted((tmp_path / "kept").iterdir()) == sorted(paths(kept, plan))
    copy = dataclasses.replace(plan, csrc=write_sources(tmp_path / "copy"))
    assert kept.missing(copy) == []
    library = kept.build(copy, tmp_path / "objects-2", tmp_path / "out-2")
    assert list((tmp_path / "objects-2").rglob("*.o")) == []
    assert ctypes.CDLL(str(library)).tiny() == 7


@pytest.mark.parametrize("name", CHANGES)
def test_changed_file_changes_the_objects_made_from_it(tmp_path: Path, name: str) -> None:
    plan = cpu_plan(write_sources(tmp_path / "csrc"))
    kept = KeptObjects(tmp_path / "kept")
    before = paths(kept, plan)
    with (plan.csrc / name).open("a", encoding="utf-8") as file:
        file.write("// more\n")
    assert len(before - paths(kept, plan)) == CHANGES[name]


@pytest.mark.parametrize("changed", [{"compiler_version": "c++ 99"}, {"compiler": ("cc",)}])
def test_changed_tools_change_every_object(tmp_path: Path, changed: dict[str, str]) -> None:
    plan = cpu_plan(write_sources(tmp_path / "csrc"))
    kept = KeptObjects(tmp_path / "kept")
    tools: Toolchain = dataclasses.replace(plan.tools, **changed)
    other = dataclasses.replace(plan, tools=tools)
    assert not paths(kept, plan) & paths(kept, other)


def test_includes_are_followed(tmp_path: Path) -> None:
    csrc = write_sources(tmp_path)
    (csrc / "common.h").write_text('#pragma once\n#include "cuda/sim/deep.h"\n', encoding="utf-8")
    (csrc / "cuda" / "sim" / "deep.h").write_text('#include "../../common.h"\n', encoding="utf-8")
    found = {path.relative_to(csrc).as_posix() for path in included_files(csrc / "cuda/swiglu.cu")}
    assert found == {"cuda/swiglu.cu", "common.h", "cuda/sim/deep.h"}


def test_only_unused_objects_are_forgotten(tmp_path: Path) -> None:
    kept = KeptObjects(tmp_path)
    for name, days in (("new.o", 1), ("old.o", 30)):
        (tmp_path / name).touch()
        then = time.time() - days * 24 * 3600
        os.utime(tmp_path / name, (then, then))
    kept.forget_old()
    assert [path.name for path in tmp_path.iterdir()] == ["new.o"]
