"""What a library is built from follows from the files in csrc."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.ops.library.stamp import source_hash
from roots.ops.library.targets import BACKENDS, Backend, make_target
from tests.helpers.sources import ROOT
from tests.ops.library.tiny import write_sources


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "csrc")


def units(backend: Backend, csrc: Path, ops: tuple[str, ...] = ()) -> list[str]:
    return [unit.name for unit in make_target(backend, csrc, ops=ops).units]


def test_cpu_kernels_are_compiled_once_for_each_instruction_set(csrc: Path) -> None:
    assert units("cpu", csrc) == [
        "binding/schemas.cpp.o",
        "binding/swiglu.cpp.o",
        "binding/cpu_schemas.cpp.o",
        "avx2/softmax.cpp.o",
        "avx512/softmax.cpp.o",
        "avx2/swiglu.cpp.o",
        "avx512/swiglu.cpp.o",
    ]


def test_cuda_library_leaves_the_schemas_to_the_cpu_library(csrc: Path) -> None:
    assert units("cuda", csrc) == ["binding/swiglu.cpp.o", "cuda/swiglu.cu.o", "sm90/wide.cu.o"]


def test_simulator_has_the_portable_cuda_kernels_and_its_runtime(csrc: Path) -> None:
    expected = [
        "binding/schemas.cpp.o",
        "binding/swiglu.cpp.o",
        "cuda/swiglu.cu.o",
        "sim/run.cpp.o",
    ]
    assert units("simulator", csrc) == expected


def test_ops_choose_sources_by_their_stem_and_keep_the_schemas(csrc: Path) -> None:
    assert units("cpu", csrc, ("softmax",)) == [
        "binding/schemas.cpp.o",
        "binding/cpu_schemas.cpp.o",
        "avx2/softmax.cpp.o",
        "avx512/softmax.cpp.o",
    ]


def test_machine_code_for_every_architecture_and_ptx_of_the_last(csrc: Path) -> None:
    by_name = {unit.name: unit for unit in make_target("cuda", csrc).units}
    gencode = [flag for flag in by_name["cuda/swiglu.cu.o"].flags if "gencode" in flag]
    assert gencode == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    hopper = [flag for flag in by_name["sm90/wide.cu.o"].flags if "gencode" in flag]
    assert hopper == ["-gencode=arch=compute_90a,code=sm_90a"]


@pytest.mark.parametrize(
    "changed, backends",
    [
        ("common.h", {"cpu", "cuda", "simulator"}),
        ("binding/swiglu.cpp", {"cpu", "cuda", "simulator"}),
        ("cpu/swiglu.cpp", {"cpu"}),
        ("cpu/schemas.h", {"cpu"}),
        ("binding/cpu/cpu_schemas.cpp", {"cpu"}),
        ("cuda/swiglu.cu", {"cuda", "simulator"}),
        ("cuda/sm90/wide.cu", {"cuda"}),
        ("cuda/sim/run.cpp", {"simulator"}),
    ],
)
def test_a_change_concerns_the_libraries_that_hold_the_file(
    csrc: Path, changed: str, backends: set[str]
) -> None:
    before = {backend: source_hash(make_target(backend, csrc), csrc) for backend in BACKENDS}
    (csrc / changed).write_text("// changed\n", encoding="utf-8")
    after = {backend: source_hash(make_target(backend, csrc), csrc) for backend in BACKENDS}
    assert {backend for backend in BACKENDS if before[backend] != after[backend]} == backends


def test_flags_count_as_sources_and_architectures_do_not(csrc: Path) -> None:
    plain = source_hash(make_target("cuda", csrc), csrc)
    assert source_hash(make_target("cuda", csrc, sanitize=True), csrc) != plain
    assert source_hash(make_target("cuda", csrc, architectures=("90",)), csrc) == plain


def test_every_source_in_the_repository_belongs_to_a_library() -> None:
    csrc = ROOT / "csrc"
    known = {name for backend in BACKENDS for name in make_target(backend, csrc).files}
    suffixes = {".cpp", ".cu", ".h", ".cuh", ".inc"}
    here = {
        path.relative_to(csrc).as_posix()
        for path in csrc.rglob("*")
        if path.suffix in suffixes and path.parent.name != "data"
    }
    assert here - known == set(), "roots/ops/library/targets.py does not build these"
