"""Every kernel compiles for every architecture, without spills, and into what it was written for.

The limits are those of tests/golden/cuda_kernels.json; tests/cuda/compiled.py writes it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from roots.ops.library.stamp import read_stamp
from roots.ops.library.targets import ARCHITECTURES
from roots.ops.library.toolchain import BuildError, find_cuda
from tests.cuda import compiled
from tests.cuda.compiled import Kernel, Usage
from tests.helpers.sources import ROOT

# Sources whose every kernel multiplies by tensor cores.
TENSOR_CORES = re.compile(r"\w+_mma\.cu")
# Sources that only choose among kernels of others.
WITHOUT_KERNELS = {"attention.cu"}


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        find_cuda(os.environ)
    except BuildError as error:
        pytest.skip(str(error))
    return compiled.library()


@pytest.fixture(scope="module")
def usages(library: Path) -> dict[Kernel, Usage]:
    return compiled.usages(library)


@pytest.fixture(scope="module")
def instructions(library: Path) -> dict[tuple[str, str], Counter[str]]:
    if compiled.disassembler() is None:
        pytest.skip("there is no cuobjdump with nvdisasm: `pip install .[cuda-build]`")
    return compiled.instructions(library)


def test_every_kernel_is_compiled_for_every_architecture(
    library: Path, usages: dict[Kernel, Usage]
) -> None:
    stamp = read_stamp(library)
    assert stamp is not None
    assert stamp.architectures == ARCHITECTURES
    expected = {f"sm_{architecture}" for architecture in ARCHITECTURES}
    compiled_for: dict[tuple[str, str], set[str]] = {}
    for kernel in usages:
        compiled_for.setdefault((kernel.source, kernel.name), set()).add(kernel.architecture)
    for (source, name), found in compiled_for.items():
        wanted = {"sm_90a"} if source.startswith("sm90/") else expected
        assert found == wanted, f"{source}: {name}"


def test_every_source_has_kernels(usages: dict[Kernel, Usage]) -> None:
    sources = {path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    assert sources - {kernel.source for kernel in usages} == WITHOUT_KERNELS


def test_no_kernel_spills_and_none_takes_more_than_the_table_says(
    library: Path, usages: dict[Kernel, Usage]
) -> None:
    table = json.loads(compiled.TABLE.read_text(encoding="utf-8"))
    stamp = read_stamp(library)
    assert stamp is not None
    found = compiled.complaints(usages, table, same_compiler=stamp.cuda == table["cuda"])
    assert not found, "\n".join([*found, "If that is meant: `python -m tests.cuda.compiled`."])


def test_no_kernel_uses_local_memory(instructions: dict[tuple[str, str], Counter[str]]) -> None:
    assert instructions
    found = [
        f"{name} on {architecture}: {counts['LDL']} LDL, {counts['STL']} STL"
        for (name, architecture), counts in by_stem(instructions).items()
        if counts["LDL"] or counts["STL"]
    ]
    assert not found, "\n".join(found)


def test_attention_kernels_use_tensor_cores(
    usages: dict[Kernel, Usage], instructions: dict[tuple[str, str], Counter[str]]
) -> None:
    wanted = [kernel for kernel in usages if TENSOR_CORES.fullmatch(kernel.source)]
    assert {kernel.name.partition("<")[0] for kernel in wanted} == {
        "forward_kernel", "keys_kernel", "queries_kernel"
    }  # fmt: skip
    stems = by_stem(instructions)
    without = [k for k in wanted if not stems[k.name, k.architecture]["HMMA"]]
    assert not without, f"no HMMA in {without}"


def by_stem(
    instructions: dict[tuple[str, str], Counter[str]],
) -> dict[tuple[str, str], Counter[str]]:
    """Instructions without their modifiers: HMMA.16816.F32.BF16 counts as HMMA."""
    result = {}
    for key, counts in instructions.items():
        stems = Counter[str]()
        for instruction, count in counts.items():
            stems[instruction.partition(".")[0]] += count
        result[key] = stems
    return result


TABLE = {
    "cuda": "13.0",
    "columns": ["registers", "shared bytes"],
    "kernels": {"a.cu": {"f<bf16>": {"sm_80": [32, 128], "sm_90": [32, 128]}}},
}
USAGES = {
    Kernel("a.cu", "f<bf16>", "sm_80"): Usage(32, 128, 0, 0),
    Kernel("a.cu", "f<bf16>", "sm_90"): Usage(30, 128, 0, 0),
}
FIRST = Kernel("a.cu", "f<bf16>", "sm_80")


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, []),
        (
            {FIRST: Usage(33, 128, 0, 0)},
            ["a.cu: f<bf16> on sm_80 takes 33 registers, the table has 32."],
        ),
        (
            {FIRST: Usage(32, 129, 0, 0)},
            ["a.cu: f<bf16> on sm_80 takes 129 shared bytes, the table has 128."],
        ),
        (
            {FIRST: Usage(32, 128, 8, 4)},
            ["a.cu: f<bf16> on sm_80 has 8 bytes of stack, 4 of spills."],
        ),
        (
            {Kernel("a.cu", "f<half>", "sm_80"): Usage(1, 0, 0, 0)},
            ["a.cu: f<half> on sm_80 is not in the table."],
        ),
    ],
)
def test_gate_names_what_moved(changed: dict[Kernel, Usage], said: list[str]) -> None:
    assert compiled.complaints({**USAGES, **changed}, TABLE, same_compiler=True) == said


def test_gate_names_what_is_gone() -> None:
    assert compiled.complaints({FIRST: USAGES[FIRST]}, TABLE, same_compiler=True) == [
        "a.cu: f<bf16> on sm_90 is in the table and is not built."
    ]


def test_gate_judges_another_compiler_by_its_spills_alone() -> None:
    more = {**USAGES, FIRST: Usage(99, 999, 0, 0)}
    assert compiled.complaints(more, TABLE, same_compiler=False) == []
    spilling = {**USAGES, FIRST: Usage(99, 999, 0, 16)}
    assert len(compiled.complaints(spilling, TABLE, same_compiler=False)) == 1


def test_gate_sees_a_spill_in_what_ptxas_says(tmp_path: Path) -> None:
    library = tmp_path / "_C_cuda.so"
    library.with_suffix(".log").write_text(
        "== cuda/a.cu.o\n"
        "ptxas info    : Compiling entry function '_Z1fI13__nv_bfloat16EvPT_' for 'sm_80'\n"
        "ptxas info    : Function properties for _Z1fI13__nv_bfloat16EvPT_\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 80 registers, used 1 barriers, 512 bytes smem, 360 bytes cmem[0]\n",
        encoding="utf-8",
    )
    assert compiled.usages(library) == {FIRST: Usage(80, 512, 8, 16)}
