"""What each way of starting ranks makes of signals, dead ranks and lost hosts, in real runs.

    python -m tests.cluster.launchers [--json FILE] [--only REGEX]

Simulates hosts (root; tests/cluster/run.sh), starts a small run of two ranks with each script of
launch/, on two hosts where it can, and does one thing to each. Printed is the table of
docs/pages/cluster.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts, hosts_up, wait_until
from tests.cluster.runs import PATIENCE, Start, last_step, saved_step, start, write_run

RECORD = Path(__file__).parents[1] / "bench" / "results" / "launchers.json"
HOSTS = ("head", "node1", "node2")
# Name, the script with its options, where it is started.
LAUNCHERS: dict[str, tuple[tuple[str, ...], str]] = {
    "`local.sh`": (("local.sh", "2"), "node1"),
    "`hostfile.sh` over pdsh": (("hostfile.sh", "--over", "pdsh", "{hosts}"), "head"),
    "`hostfile.sh` over ssh": (("hostfile.sh", "--over", "ssh", "{hosts}"), "head"),
    "`torchrun.sh`": (("torchrun.sh", "{hosts}"), "head"),
    "`mpirun.sh`": (("mpirun.sh", "{hosts}"), "head"),
}
_HEAD = ("script", "what happens", "ranks end with", "saved", "exit code", "nothing left after")
# For rank 1, in every Python of the run: bad input in mid-run, once there is that file.
_BAD_INPUT = """
import ctypes, os, threading, time
def wait():
    while not os.path.exists(os.environ["ROOTS_TEST_BAD_INPUT"]):
        time.sleep(0.2)
    from roots.errors import RootsError
    class Planted(RootsError):
        def __init__(self):
            super().__init__("planted=1: must not be there; take it out")
    main = ctypes.c_ulong(threading.main_thread().ident)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(Planted))
if os.environ.get("RANK") == "1" and "ROOTS_TEST_BAD_INPUT" in os.environ:
    threading.Thread(target=wait, daemon=True).start()
"""


def _to_script(number: signal.Signals) -> Callable[[Start, Path], None]:
    return lambda going, folder: going.hosts.send(going.process, number)


def _kill(going: Start, folder: Path) -> None:
    os.kill(going.ranks()[1], signal.SIGKILL)


def _bad_input(going: Start, folder: Path) -> None:
    (folder / "now").touch()


def _cut(going: Start, folder: Path) -> None:
    going.hosts.cut("node2")


EVENTS: dict[str, Callable[[Start, Path], None]] = {
    "SIGTERM to the script": _to_script(signal.SIGTERM),
    "SIGUSR1 to the script": _to_script(signal.SIGUSR1),
    "one rank is killed": _kill,
    "one rank exits 2": _bad_input,
    "a host is cut off": _cut,
}


def measure(hosts: Hosts, folder: Path, name: str, event: str) -> dict[str, Any]:
    """One start with the launcher of that name, `event` done to it, and what came of it."""
    run = write_run(folder, training={"steps": 1_000_000}, checkpoint={"every_steps": 25})
    (folder / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="ascii")
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(_BAD_INPUT, encoding="utf-8")
    words, host = LAUNCHERS[name]
    script = [word.format(hosts=folder / "hosts") for word in words]
    path = f"{folder / 'site'}:{Path(__file__).parents[2]}"
    more = {"PYTHONPATH": path, "ROOTS_TEST_BAD_INPUT": str(folder / "now")}
    with start(hosts, run, script, host, **more) as going:
        going.after_step(40)
        EVENTS[event](going, folder)
        began = time.monotonic()
        code = going.wait()
        ended = time.monotonic() - began
        wait_until(lambda: not going.left(), "nothing is left", PATIENCE)
        seconds = time.monotonic() - began
    return {
        "launcher": name,
        "event": event,
        "ranks": [going.codes.get(rank) for rank in (0, 1)],
        "last_step": last_step(run),
        "saved_step": saved_step(run),
        "code": code,
        "seconds": round(ended, 1),
        "seconds_all": round(seconds, 1),
        "said": [line.strip() for line in going.output if "error:" in line or "lost" in line],
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the table in Markdown."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    for row in rows:
        codes = ", ".join("killed" if code is None else str(code) for code in row["ranks"])
        saved = "its last step"
        if row["saved_step"] < row["last_step"]:
            saved = "the checkpoint before"
        words = (row["launcher"], row["event"], codes, saved, str(row["code"]))
        lines.append(f"| {' | '.join(words)} | {row['seconds_all']:.0f} s |")
    return lines


def main() -> int:
    """Measure all, write the record and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.launchers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--only", default="", metavar="REGEX", help="of rows")
    options = parser.parse_args()
    rows = []
    place = Path(tempfile.mkdtemp(prefix="roots-launchers-", dir="/tmp"))
    with hosts_up(place / "hosts", HOSTS) as hosts:
        for name, (_, host) in LAUNCHERS.items():
            for event in EVENTS:
                # Open MPI's daemon stays on the host until TCP gives its connection up.
                alone = host != "head" or name == "`mpirun.sh`"
                if (alone and event == "a host is cut off") or not re.search(
                    options.only, f"{name} {event}"
                ):
                    continue
                folder = place / f"run{len(rows)}"
                folder.mkdir()
                rows.append(measure(hosts, folder, name, event))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                hosts.switch_off("node2")
                hosts.switch_on("node2")
    shutil.rmtree(place, ignore_errors=True)
    print("\n".join(table(rows)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
