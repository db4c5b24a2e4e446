"""What each way of starting ranks makes of signals, dead ranks and lost hosts, in real runs.

    python -m tests.cluster.launchers [--json FILE] [--only REGEX]

Simulates hosts (root; tests/cluster/run.sh), starts a small run of two ranks with each script of
launch/, on two hosts where it can, and does one thing to each. Printed is the table of
docs/pages/cluster.md. Rows of FILE that were not measured now stay as they are.

A job of Slurm is started by `sbatch --wait`, whose exit code is the job's, with --no-requeue and
without launch/supervise.sh, so that its end is one.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts, hosts_up, wait_until
from tests.cluster.runs import PATIENCE, Start, last_step, saved_step, start, write_run
from tests.cluster.slurm import Slurm, slurm_up

RECORD = Path(__file__).parents[1] / "bench" / "results" / "launchers.json"
HOSTS = ("head", "node1", "node2")


@dataclass(frozen=True)
class Launcher:
    """How a run is started: the script with its options, and on which host.

    `process` is how the command of the launcher below it begins, which runs on `place`.
    """

    script: tuple[str, ...]
    process: str
    host: str = "head"
    place: str = "head"

    @property
    def by_slurm(self) -> bool:
        """Whether the script is submitted."""
        return self.script[0].endswith(".sbatch")


_PYTHON = r"\S*python\S* "
LAUNCHERS = {
    "`local.sh`": Launcher(("local.sh", "2"), _PYTHON + r"\S*/deepspeed ", "node1", "node1"),
    "`hostfile.sh` over pdsh": Launcher(
        ("hostfile.sh", "--over", "pdsh", "{hosts}"), _PYTHON + r"\S*/deepspeed "
    ),
    # On the host of rank 0, where there is one on each.
    "`hostfile.sh` over ssh": Launcher(
        ("hostfile.sh", "--over", "ssh", "{hosts}"),
        _PYTHON + r"-u -m deepspeed\.launcher\.launch ",
        place="node1",
    ),
    "`torchrun.sh`": Launcher(
        ("torchrun.sh", "{hosts}"), _PYTHON + r"-u -m torch\.distributed\.run ", place="node1"
    ),
    "`mpirun.sh`": Launcher(("mpirun.sh", "{hosts}"), r"\S*/mpirun "),
    "`slurm.sbatch`": Launcher(("slurm.sbatch",), r"srun --kill-on-bad-exit", place="node1"),
}
_SBATCH = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--no-requeue")
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


Event = Callable[[Start, Launcher, Path], None]


def _to_script(number: signal.Signals) -> Event:
    """To the script itself, as a user or a scheduler sends it; with Slurm by scancel."""

    def send(going: Start, launcher: Launcher, folder: Path) -> None:
        if launcher.by_slurm:
            slurm = Slurm(going.hosts)
            job = slurm.ask("squeue", "--noheader", "--format=%A")
            slurm.ask("scancel", "--batch", f"--signal={number.name[3:]}", job)
        else:
            going.hosts.send(going.process, number)

    return send


def _to_launcher(number: signal.Signals) -> Event:
    def send(going: Start, launcher: Launcher, folder: Path) -> None:
        running = going.hosts.processes(launcher.place).items()
        # What it has started by a fork has its name and a higher number.
        os.kill(min(pid for pid, words in running if re.match(launcher.process, words)), number)

    return send


def _kill(going: Start, launcher: Launcher, folder: Path) -> None:
    os.kill(going.ranks()[1], signal.SIGKILL)


def _bad_input(going: Start, launcher: Launcher, folder: Path) -> None:
    (folder / "now").touch()


def _cut(going: Start, launcher: Launcher, folder: Path) -> None:
    going.hosts.cut("node2")


EVENTS: dict[str, Event] = {
    "SIGTERM to the script": _to_script(signal.SIGTERM),
    "SIGUSR1 to the script": _to_script(signal.SIGUSR1),
    "SIGTERM to the launcher": _to_launcher(signal.SIGTERM),
    "SIGUSR1 to the launcher": _to_launcher(signal.SIGUSR1),
    "one rank is killed": _kill,
    "one rank exits 2": _bad_input,
    "a host is cut off": _cut,
}
# Nothing can be cut off from a run on one machine.
ROWS = [
    (name, event)
    for name, launcher in LAUNCHERS.items()
    for event in EVENTS
    if (launcher.host, event) != ("node1", "a host is cut off")
]


def measure(hosts: Hosts, folder: Path, name: str, event: str) -> dict[str, Any]:
    """One start with the launcher of that name, `event` done to it, and what came of it."""
    # A line for each of a hundred steps a second would fill the pipe to Open MPI's daemon, which
    # does not read while mpirun waits before it kills.
    run = write_run(
        folder,
        training={"steps": 1_000_000},
        checkpoint={"every_steps": 25},
        tracking={"log_every_steps": 10},
    )
    (folder / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="ascii")
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(_BAD_INPUT, encoding="utf-8")
    launcher = LAUNCHERS[name]
    script = [word.format(hosts=folder / "hosts") for word in launcher.script]
    path = f"{folder / 'site'}:{Path(__file__).parents[2]}"
    more = {"PYTHONPATH": path, "ROOTS_TEST_BAD_INPUT": str(folder / "now")}
    options = ()
    if launcher.by_slurm:
        options = ("sbatch", "--wait", *_SBATCH, f"--output={folder}/log")
        more |= _variables_of_job(hosts, folder)
    with start(hosts, run, script, launcher.host, *options, **more) as going:
        going.after_step(40)
        EVENTS[event](going, launcher, folder)
        began = time.monotonic()
        if launcher.by_slurm:
            # `sbatch --wait` looks every few seconds.
            wait_until(lambda: not going.left(), "nothing is left", PATIENCE)
            seconds = time.monotonic() - began
        code = going.wait()
        ended = time.monotonic() - began
        wait_until(lambda: not going.left(), "nothing is left", PATIENCE)
        if not launcher.by_slurm:
            seconds = time.monotonic() - began
        said = [*going.output, *_lines_of(folder / "log")]
    return {
        "launcher": name,
        "event": event,
        "ranks": [going.codes.get(rank) for rank in (0, 1)],
        "last_step": last_step(run),
        "saved_step": saved_step(run),
        "code": code,
        "seconds": round(ended, 1),
        "seconds_all": round(seconds, 1),
        "said": [line.strip() for line in said if "error:" in line or "lost" in line],
    }


def _lines_of(log: Path) -> list[str]:
    """Of a job; none where there is none."""
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def _variables_of_job(hosts: Hosts, folder: Path) -> dict[str, str]:
    """For sbatch, and for ranks that shall tell their codes without a script that asks."""
    return {
        "SLURM_CONF": str(hosts.folder / "slurm" / "slurm.conf"),
        "ROOTS_HOME": str(Path(__file__).parents[2]),
        "ROOTS_SUPERVISE": "off",
        "ROOTS_RANK_RECORDS": str(folder / "records"),
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
    """Measure all, write the record and print the table; 1 where a row could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.launchers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--only", default="", metavar="REGEX", help="of rows")
    options = parser.parse_args()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if options.json and options.json.exists():
        before = json.loads(options.json.read_text(encoding="utf-8"))
        rows = {(row["launcher"], row["event"]): row for row in before}
    place = Path(tempfile.mkdtemp(prefix="roots-launchers-", dir="/tmp"))
    # For munged, whose socket is below it.
    place.chmod(0o755)
    failed = 0
    with hosts_up(place / "hosts", HOSTS) as hosts:
        slurm = None
        for number, (name, event) in enumerate(ROWS):
            if not re.search(options.only, f"{name} {event}"):
                continue
            if slurm is None and LAUNCHERS[name].by_slurm:
                slurm = slurm_up(hosts)
            folder = place / f"run{number}"
            folder.mkdir()
            try:
                rows[name, event] = measure(hosts, folder, name, event)
                print(json.dumps(rows[name, event]), file=sys.stderr, flush=True)
            except AssertionError as error:
                failed += 1
                print(f"{name}, {event}: {error}", file=sys.stderr, flush=True)
            hosts.switch_off("node2")
            hosts.switch_on("node2")
            if slurm is not None:
                slurm.cancel_all()
                slurm.mend()
            if options.json:
                known = [rows[each] for each in ROWS if each in rows]
                options.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    print("\n".join(table([rows[each] for each in ROWS if each in rows])))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
