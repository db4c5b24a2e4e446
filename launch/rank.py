"""One rank of a run: `roots train ...` in a process whose end the starting script can read.

DeepSpeed's launcher ends with the code of whichever rank it looks at first and stops the others, so
a rank that failed because its neighbour did can hide the cause. Under launch/local.sh every rank
therefore writes into the folder $ROOTS_RANK_RECORDS: `<rank>.pid` at its start, and `<rank>.code`
with "<time in ns> <exit code>" at its end. Without that variable nothing is written.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the command line of ROOTS with `arguments` and return its exit code."""
    rank = os.environ.get("RANK", "0")
    records = os.environ.get("ROOTS_RANK_RECORDS")
    _limit_threads()
    if records:
        _write(Path(records, f"{rank}.pid"), str(os.getpid()))
    code = _run(arguments)
    if records:
        _write(Path(records, f"{rank}.code"), f"{time.time_ns()} {code}")
    return code


def _limit_threads() -> None:
    """Share the cores between the ranks of this machine, unless the user has decided."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))


def _run(arguments: list[str]) -> int:
    sys.argv = ["roots", *arguments]
    try:
        # Imported late: OMP_NUM_THREADS must stand before torch reads it.
        from roots.cli.main import main as roots_main

        roots_main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + 2
    except BaseException:  # noqa: BLE001
        # A process boundary: whatever ended the rank must be shown and become its exit code.
        traceback.print_exc()
        return 1
    return 0


def _write(path: Path, text: str) -> None:
    """Write in one step, so that a reader never sees half a record."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text + "\n", encoding="ascii")
    temporary.rename(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
