"""How fast the disk of a checkpoint takes plain bytes, to hold the writing of checkpoints against.

Measured once a run, on the folder that is written to: one file of random bytes, written in blocks
and flushed, as `dd bs=1M conv=fsync` does.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# Held beside the copy that is written.
_BLOCK_BYTES = 1 << 20
# Of less the time is that of a flush, and tells nothing of the rate.
LEAST_BYTES = 16 << 20
_MOST_BYTES = 128 << 20
_NAME = "disk_rate"


def measure_disk(folder: Path, num_bytes: int) -> float | None:
    """Bytes a second that the disk of `folder` takes of up to `num_bytes`; None where unknown.

    That is for fewer than LEAST_BYTES, and where they cannot be written: this is no reason to fail.
    """
    if num_bytes < LEAST_BYTES:
        return None
    path, count = folder / _NAME, min(num_bytes, _MOST_BYTES)
    block = memoryview(os.urandom(min(_BLOCK_BYTES, count)))
    try:
        try:
            return count / _seconds_of_writing(path, block, count)
        finally:
            path.unlink(missing_ok=True)
    except OSError:
        return None


def _seconds_of_writing(path: Path, block: memoryview, count: int) -> float:
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while count > 0:
            count -= file.write(block[:count])
        os.fsync(file.fileno())
    return time.perf_counter() - started
