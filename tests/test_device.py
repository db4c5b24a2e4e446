"""What a device tells of itself; GPUs are tested where there are some (tests/cuda)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

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
