"""One rank of a run: `roots train ...` in a process whose end the starting script can read.

DeepSpeed's launcher ends with the code of whichever rank it looks at first and stops the others, so
a rank that failed because its neighbour did can hide the cause. Under launch/local.sh and
launch/hostfile.sh every rank therefore writes into the folder $ROOTS_RANK_RECORDS of its machine:
`<rank>.pid` at its start, and `<rank>.code` with "<time in ns> <exit code>" at its end. Without
that variable nothing is written.

Signals that ask to stop wait from its first moment on until ROOTS has handlers for them, before
which a process could only die of them: so a rank that is stopped while it starts exits 3 as well.
After ROOTS' handlers a rank has a little time to record its code: a launcher stops all others as
soon as one has ended.
A rank ends with what started it: when DeepSpeed's launcher or the script is gone, however it ended,
the rank gets SIGTERM and so finishes its step, saves and exits 3.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

# How often a rank looks for those who started it, and how long it may then take to save.
WATCH_SECONDS, SAVING_SECONDS = 1.0, 600.0
# For the end of a rank that is told to stop when it has saved.
_LEAVING_SECONDS = 30
# After these another start changes nothing: bad input, interrupted, diverged, `verify` differs,
# ended by the keyboard.
FINAL_CODES = (2, 3, 4, 5, 130)
# Those of roots.training.signals, which comes too late with what it imports.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(arguments: list[str]) -> int:
    """Run the command line of ROOTS with `arguments` and return its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: signal.alarm(_LEAVING_SECONDS))
    rank = os.environ.get("RANK", "0")
    # %h is the name of this host, where hosts share the folder.
    records = os.environ.get("ROOTS_RANK_RECORDS", "").replace("%h", os.uname().nodename)
    _limit_threads()
    _end_with(_starters())
    if records:
        # launch/hostfile.sh names a folder that does not exist yet on every host.
        Path(records).mkdir(mode=0o700, parents=True, exist_ok=True)
        if _has_ended(Path(records, f"{rank}.code")):
            return 0
        _write(Path(records, f"{rank}.pid"), str(os.getpid()))
        # For an end that does not come back here: roots.device.end_process.
        os.environ["ROOTS_RANK_RECORD"] = str(Path(records, f"{rank}.code"))
    code = _run(arguments)
    if records:
        _write(Path(records, f"{rank}.code"), f"{time.time_ns()} {code}")
        # torchrun starts again all that does not end with 0; launch/torchrun.sh reads the records.
        if "TORCHELASTIC_RUN_ID" in os.environ and code in FINAL_CODES:
            return 0
    return code


def _has_ended(record: Path) -> bool:
    """Whether this rank, which torchrun starts again, had an end that is none to start after.

    Any other record of an end before is removed.
    """
    if record.exists() and int(record.read_text("ascii").split()[1]) in FINAL_CODES:
        return True
    record.unlink(missing_ok=True)
    return False


def _starters() -> dict[int, str]:
    """The processes this rank must not outlive, with when they started ("": gone already).

    They are its parent and, in the line above it, whatever stands up to the script that started the
    run: process $ROOTS_LAUNCHER, or on another host the sshd that holds the connection to it.
    """
    script = os.environ.get("ROOTS_LAUNCHER", "")
    process, found = os.getppid(), dict[int, str]()
    while process > 1:
        name, parent, started = _look_at(process)
        found[process] = started
        if not script or str(process) == script or (script == "ssh" and name.startswith("sshd")):
            return found
        process = parent
    # Process 1 of a container can be the script, and all ends with it. Any other script that is not
    # in that line had ended before this rank began.
    return found if script == "1" or not script.isdecimal() else {**found, int(script): ""}


def _look_at(process: int) -> tuple[str, int, str]:
    """Name, parent and start of a process; ("", 0, "") if it has ended, reaped or not."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0, ""
    # The name is in parentheses and may hold any character.
    before, _, after = text.rpartition(")")
    fields = after.split()
    if fields[0] in "ZX":
        return "", 0, ""
    return before.partition("(")[2], int(fields[1]), fields[19]


def _end_with(starters: dict[int, str]) -> None:
    """Tell this process to save and end when one of `starters` has; kill it if it does not."""
    if not Path("/proc/self/stat").exists():
        return

    def watch() -> None:
        while all(started and _look_at(pid)[2] == started for pid, started in starters.items()):
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        # Whoever read this may be gone as well.
        with suppress(OSError):
            print("rank.py: what started this rank has ended: saving and leaving", file=sys.stderr)
        time.sleep(SAVING_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    # Signals are for the main thread: threads inherit what is blocked where they are started.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    threading.Thread(target=watch, name="starters", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
