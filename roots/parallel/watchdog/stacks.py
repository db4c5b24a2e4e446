"""What a rank leaves of itself when the run ends: RUN/stacks/rank_N.txt, written anew each time."""

from __future__ import annotations

import faulthandler
import traceback
from contextlib import suppress
from pathlib import Path

from roots.lock import Owner, start_ticks

FOLDER = "stacks"


def write_stacks(folder: Path, rank: int, head: str, error: BaseException | None) -> None:
    """The Python stacks of all threads of this process, after `head` and what `error` unwound.

    faulthandler bounds them: 100 threads of 100 frames. A folder that cannot be written is no
    reason to stay.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"rank_{rank}.txt", "w", encoding="utf-8") as file:
            file.write(head + "\n")
            if error is not None:
                file.writelines(traceback.format_exception(error))
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)


def write_absence(folder: Path, rank: int, head: str) -> None:
    """Why there is no stack of another rank, in its place."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank_{rank}.txt").write_text(
            f"{head}\nno Python stack: a process that is gone or stopped cannot write its own\n",
            encoding="utf-8",
        )


def is_there(owner: Owner) -> bool:
    """Whether a process of this machine has not ended, stopped or not."""
    return start_ticks(owner.pid) == owner.started


def is_stopped(owner: Owner) -> bool:
    """Whether a process of this machine is there and does not run, as far as the kernel tells."""
    try:
        text = Path(f"/proc/{owner.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return is_there(owner) and text.rpartition(")")[2].split()[0] in "Tt"
