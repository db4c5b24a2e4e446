"""What a device tells of itself; GPUs are tested where there are some (tests/cuda)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from roots.device import end_process

GIB = 2**30
PRINT_PEAK = "from roots.device import Device, memory_bytes; print(memory_bytes(Device('cpu', 0)))"


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
