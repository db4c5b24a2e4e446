"""What a device tells of itself; GPUs are tested where there are some (tests/cuda)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from roots.device import end_process, process_start, release_free_memory

GIB = 2**30
# With what a rank has loaded, too.
PRINT_PEAK = (
    "import torch; from roots.device import Device, memory_bytes;"
    "print(memory_bytes(Device('cpu', 0)))"
)


def peak_of_a_child() -> int:
    words = [sys.executable, "-c", PRINT_PEAK]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def test_peak_of_a_program_is_not_that_of_its_parent() -> None:
    alone = peak_of_a_child()
    assert 0.05 * GIB < alone < GIB
    held = np.ones(GIB + GIB // 2, dtype=np.uint8)
    assert peak_of_a_child() < alone + GIB // 4
    assert held.all()


def test_an_end_at_once_leaves_the_code_where_launchers_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.time_ns()
    for record in (tmp_path / "3.code", None, tmp_path / "missing" / "3.code"):
        monkeypatch.setenv("ROOTS_RANK_RECORD", "" if record is None else str(record))
        child = os.fork()
        if child == 0:
            try:
                end_process(7)
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    moment, code = (tmp_path / "3.code").read_text("ascii").split()
    assert (int(moment) >= began, code) == (True, "7")
    assert [path.name for path in tmp_path.iterdir()] == ["3.code"]


def test_start_of_the_process_is_its_own() -> None:
    """To a hundredth of a second, the kernel's unit; a fork begins when it is forked."""
    before = time.time()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, repr(process_start()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    forked = float(os.read(read, 100))
    os.close(read)
    os.close(write)
    assert before - 0.05 <= forked <= time.time() + 0.05
    assert process_start() < before
    assert process_start() == pytest.approx(process_start(), abs=0.05)


def test_memory_that_nobody_uses_goes_back_to_the_system() -> None:
    """Also what lies below a block that is in use, as after an engine was built."""
    before = resident_bytes()
    blocks = [bytearray(b"x" * 100_000) for _ in range(500)]
    del blocks[:-1]
    release_free_memory()
    assert resident_bytes() - before < 10_000_000
    assert len(blocks) == 1


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
