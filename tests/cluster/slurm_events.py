"""What Slurm makes of a job of launch/slurm.sbatch, by event: states, exit codes, waits.

    python -m tests.cluster.slurm_events [--json FILE] [--only REGEX]

Each event happens to a job of two nodes under real Slurm with accounting, which needs root,
mariadb-server and slurmdbd. Its ranks are shell scripts that do at signals what ROOTS' ranks do:
save, and end with code 3. The table on docs/pages/slurm.md is made of the file by `table`. Events
of FILE that were not observed now stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.hosts import hosts_up, wait_until
from tests.cluster.slurm import Slurm, slurm_up
from tests.helpers.sources import ROOT

RESULTS = ROOT / "tests" / "bench" / "results" / "slurm.json"
NAMES = ("head", "node1", "node2", "node3")
# An interpreter with ROOTS, for the job; and a rank, where it is told to be one.
RANK = """#!/bin/bash
if [[ "$1" == -c ]]; then printf '%s\\n' run "$PLACE/run"; exit 0; fi
save() {
    echo "SIG$1" >>"$PLACE/got.$RANK"
    trap '' TERM USR1
    mkdir -p "$PLACE/run/checkpoints"
    mktemp -p "$PLACE/run/checkpoints" >"$PLACE/run/new.$RANK"
    mv "$PLACE/run/new.$RANK" "$PLACE/run/checkpoints/latest"
    exit "$AT_SIGNAL"
}
: >"$PLACE/started.$RANK.${SLURM_RESTART_COUNT:-0}"
if [[ "${SLURM_RESTART_COUNT:-0}" != 0 || -n "$CODE" ]]; then exit "${CODE:-0}"; fi
trap 'save TERM' TERM
trap 'save USR1' USR1
if [[ -n "$SLOW" ]]; then trap 'echo SIGUSR1 >>"$PLACE/got.$RANK"' USR1; fi
sleep infinity &
while true; do wait; done
"""


@dataclass(frozen=True)
class Event:
    """What happens to a job: `ranks` says how its ranks are, `strike` does it to a job's number."""

    name: str
    ranks: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    strike: Callable[[Slurm, str], object] | None = None
    minutes: float = 1.0


def _command(*words: str) -> Callable[[Slurm, str], object]:
    return lambda slurm, number: slurm.ask(*words, number)


_LIMIT = ("--time=1", "--signal=B:USR1@50")
EVENTS = (
    Event("every rank ends with code 0", {"CODE": "0"}),
    Event("ranks end with code 2 (bad input)", {"CODE": "2"}),
    Event("ranks end with code 4 (diverged)", {"CODE": "4"}),
    Event("ranks end with code 7, every node answers", {"CODE": "7"}),
    Event(
        "SIGUSR1 before the time limit, or `scancel --signal=USR1 --batch`",
        strike=_command("scancel", "--signal=USR1", "--batch"),
    ),
    Event(
        "the same, submitted with `--no-requeue`",
        words=("--no-requeue",),
        strike=_command("scancel", "--signal=USR1", "--batch"),
    ),
    Event("time limit before the ranks have saved", {"SLOW": "yes"}, _LIMIT, minutes=3),
    Event(
        "time limit, ranks end with code 0 at SIGTERM",
        {"SLOW": "yes", "AT_SIGNAL": "0"},
        _LIMIT,
        minutes=3,
    ),
    Event("`scancel --signal=USR1`", strike=_command("scancel", "--signal=USR1")),
    Event("`scontrol requeue`", strike=_command("scontrol", "requeue")),
    Event("`scancel`", strike=_command("scancel")),
    Event("`scancel --full --signal=TERM`", strike=_command("scancel", "--full", "--signal=TERM")),
    Event("a node is switched off", strike=lambda slurm, _: slurm.hosts.switch_off("node2")),
)


@dataclass
class Outcome:
    """What came of an event, for a job and each time it started.

    signals: that reached the ranks; sacct: "STATE EXIT" of the job, its batch script and its step,
    for each start; scontrol: the same in the end; requeued_seconds: from the event to the next
    start, -1 where there is none.
    """

    event: str
    signals: list[str]
    sacct: list[list[str]]
    scontrol: str
    restarts: int
    requeued_seconds: float


def observe(slurm: Slurm, event: Event, folder: Path) -> Outcome:
    """Let `event` happen to a job, and tell what came of it."""
    folder.mkdir()
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RANK, encoding="utf-8")
    python.chmod(0o755)
    values = {
        "VIRTUAL_ENV": str(python.parents[1]),
        "ROOTS_HOME": str(ROOT),
        "ROOTS_SUPERVISE": "off",
        "PLACE": str(folder),
        **{"CODE": "", "SLOW": "", "AT_SIGNAL": "3", **event.ranks},
    }
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", f"--output={folder}/log")
    script = (ROOT / "launch" / "slurm.sbatch", ROOT / "configs" / "base.yaml")
    number = slurm.submit(*options, *event.words, *script, **values)
    started = [folder / f"started.{rank}.0" for rank in (0, 1)]
    wait_until(lambda: all(path.exists() for path in started), f"{event.name}: it began")
    begin = time.monotonic()
    if event.strike is not None:
        event.strike(slurm, number)
    again = folder / "started.0.1"
    wait_until(
        lambda: again.exists() or _is_over(slurm, number), event.name, 60 * event.minutes + 60
    )
    seconds = round(time.monotonic() - begin, 1) if again.exists() else -1.0
    job = slurm.wait_for_state(number)
    wait_until(lambda: _is_over(slurm, number), f"{event.name}: it has ended")
    got = (path.read_text("ascii").split() for path in folder.glob("got.*"))
    return Outcome(
        event=event.name,
        signals=sorted({name for names in got for name in names}, reverse=True),
        sacct=_accounts(slurm, number),
        scontrol=f"{job['JobState']} {job['ExitCode']}",
        restarts=int(job["Restarts"]),
        requeued_seconds=seconds,
    )


def _is_over(slurm: Slurm, number: str) -> bool:
    return not slurm.ask("squeue", "--noheader", f"--jobs={number}")


def _accounts(slurm: Slurm, number: str) -> list[list[str]]:
    """What sacct says, when it says of every part that it has ended."""
    fields = "--format=JobIDRaw,State%40,ExitCode,Submit"
    command = ("sacct", "--duplicates", "--noheader", "--parsable2", fields, f"--jobs={number}")
    wait_until(lambda: "RUNNING" not in slurm.ask(*command), "accounting has come through")
    starts: list[list[str]] = []
    for line in slurm.ask(*command).splitlines():
        name, state, code, _ = line.split("|")
        if name == number:
            starts.append([])
        starts[-1].append(f"{state.split()[0]} {code}")
    return starts


def table(results: list[dict]) -> list[str]:
    """The rows of the page: Markdown."""
    rows = [
        "| event | ranks get | `sacct`: job | its script | its step | "
        "`scontrol` in the end | starts again |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results:
        job, script, step = (
            ", then ".join(start[place] if place < len(start) else "-" for start in each["sacct"])
            for place in range(3)
        )
        seconds = each["requeued_seconds"]
        again = "no" if seconds < 0 else f"after {seconds:.0f} s"
        signals = ", ".join(each["signals"]) or "-"
        cells = [each["event"], signals, job, script, step, each["scontrol"], again]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> int:
    """Observe the events and write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.slurm_events")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--only", default="", metavar="REGEX", help="of events")
    options = parser.parse_args()
    outcomes: dict[str, dict[str, Any]] = {}
    if options.json.exists():
        before = json.loads(options.json.read_text(encoding="utf-8"))["events"]
        outcomes = {each["event"]: each for each in before}
    with hosts_up(Path(tempfile.mkdtemp(prefix="roots-events-", dir="/tmp")), NAMES) as hosts:
        slurm = slurm_up(hosts, "--accounting")
        version = slurm.ask("sinfo", "--version")
        for number, event in enumerate(EVENTS):
            if re.search(options.only, event.name):
                outcome = asdict(observe(slurm, event, hosts.folder / f"event{number}"))
                outcomes[event.name] = outcome
                print("\n".join(table([outcome])[2:]), flush=True)
    tree = {
        "command": "python -m tests.cluster.slurm_events",
        "slurm": version,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "settings": {"SlurmdTimeout": 8, "KillWait": 30, "cred_expire": 5},
        "events": [outcomes[event.name] for event in EVENTS if event.name in outcomes],
    }
    options.json.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
