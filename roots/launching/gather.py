"""Asking all hosts for their facts at once: over ssh, inside a Slurm allocation, or only here.

Each host gets one process, roots.launching.host_facts, and all of them the same questions:

1. facts, for which each host has written its probe into the run's folder;
2. the clock, a few times, each answer between two readings of the clock here;
3. which of the other hosts' probes it sees. None has looked for them before all were written, so
   that a network file system cannot answer from what it remembers.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roots.launching.environment import variable
from roots.launching.host_facts import HostFacts
from roots.launching.ssh import advice_of, ssh_command
from roots.launching.talk import SECONDS_A_QUESTION, Inbox, Talk, end_all, receive

MODULE = "roots.launching.host_facts"
HERE = "this machine"
_CLOCK_READINGS = 3


@dataclass(frozen=True)
class Request:
    """What to look for on every host. Relative paths count from `folder`.

    `programs` are paths as `paths` are, of what is installed and not copied. `fields` is the field
    of the config that names a path, where it is that very path. `address` is where the user wants
    ranks to meet, "" for nowhere. `apart`: each name is to be of a machine of its own, as in a
    hostfile.
    """

    folder: Path
    paths: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    run_directory: Path | None = None
    programs: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    apart: bool = False


def _no_advice(silence: str) -> str:
    return ""


@dataclass(frozen=True)
class Way:
    """A host by name, and the command that starts a given command (its words) on it.

    `advise` tells what to do where that fails, from the last words on the way.
    """

    name: str
    reach: Callable[[Sequence[str]], list[str]]
    advise: Callable[[str], str] = _no_advice


@dataclass(frozen=True)
class Answer:
    """What is known of a host. `facts` is None where it did not answer, and `silence` says why,
    `advice` what to do.

    `clock_ahead` is by how many seconds its clock is ahead of the one here, right within
    `clock_error`. `sees` are the names of all hosts whose probes it found in the run's folder.
    """

    name: str
    facts: HostFacts | None = None
    silence: str = ""
    advice: str = ""
    clock_ahead: float = 0.0
    clock_error: float = 0.0
    sees: frozenset[str] = frozenset()


def here(name: str = HERE) -> Way:
    """The machine that asks."""
    return Way(name, list, lambda _: "see what `python -m roots.launching.host_facts` says")


def by_ssh(name: str, ssh: Sequence[str] = ()) -> Way:
    """A host that ssh reaches without a password; `ssh` is the command with its options."""
    words = ssh or ssh_command()
    # The shell there reads one line, whose words it takes apart again.
    return Way(
        name,
        lambda command: [*words, name, shlex.join(command)],
        lambda silence: advice_of(name, words, silence),
    )


def by_srun(node: str) -> Way:
    """A node of the Slurm allocation that this process is in, beside the tasks that run there."""
    options = ["--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
    advice = f"see what `{shlex.join(['srun', *options, 'true'])}` says inside the job"
    return Way(node, lambda words: ["srun", *options, *words], lambda _: advice)


def nodes_of_job() -> list[str]:
    """The names of the nodes of the Slurm job that this process is in, the first one first."""
    command = ["scontrol", "show", "hostnames", variable("SLURM_JOB_NODELIST")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def gather(ways: Sequence[Way], request: Request, seconds: float = 60.0) -> list[Answer]:
    """Ask every host, in the order of `ways`; each has `seconds` to start and tell its facts."""
    token = secrets.token_hex(6)
    probes = {way.name: f".roots-launch-{token}-{n}" for n, way in enumerate(ways)}
    with tempfile.TemporaryDirectory() as folder:
        calls = [
            _Call(way, words_of(request, probes[way.name]), Path(folder, str(n)))
            for n, way in enumerate(ways)
        ]
        try:
            _question(calls, probes if request.run_directory is not None else None, seconds)
        except BaseException:
            end_all(calls, at_once=True)
            raise
        end_all(calls)
        return [call.answer(probes) for call in calls]


def words_of(request: Request, probe: str) -> list[str]:
    """The command that tells the facts, with this interpreter and checkout, on whatever host."""
    words = [sys.executable, "-m", MODULE, "--folder", str(request.folder)]
    # From /, so that a folder `roots` where the user is does not pass for the package.
    path = variable("PYTHONPATH")
    words = ["env", "-C", "/", *([f"PYTHONPATH={path}"] if path else []), *words]
    for each in (*request.paths, *request.programs):
        words += ["--path", each]
    for port in request.ports:
        words += ["--port", str(port)]
    if request.address:
        words += ["--meet", request.address]
    if request.run_directory is not None:
        words += ["--run-directory", str(request.run_directory), "--probe", probe]
    return words


def _question(calls: Sequence[_Call], probes: Mapping[str, str] | None, seconds: float) -> None:
    """All questions, each to all hosts that still answer; without probes nobody looks for them."""
    inbox = Inbox()
    for call in calls:
        call.start(inbox)
    receive(inbox, calls, seconds)
    for _ in range(_CLOCK_READINGS):
        receive(inbox, [call for call in calls if call.ask("clock")], SECONDS_A_QUESTION)
    if probes is None:
        return
    names = " ".join(probes.values())
    looking = [call for call in calls if call.ask(f"look {names}")]
    receive(inbox, looking, SECONDS_A_QUESTION)


class _Call(Talk):
    """What a host has said of itself so far."""

    def __init__(self, way: Way, words: Sequence[str], errors: Path) -> None:
        super().__init__(way.reach(words), errors)
        self.way = way
        self.facts: HostFacts | None = None
        self.clocks: list[tuple[float, float]] = []
        self.seen: frozenset[str] = frozenset()

    def keep(self, tree: dict[str, Any], arrived: float) -> None:
        """Keep facts, a clock, or what it sees."""
        if "clock" in tree:
            # Read there at some moment between question and answer here: half of that is the error.
            ahead = float(tree["clock"]) - (self.asked + arrived) / 2
            self.clocks.append(((arrived - self.asked) / 2, ahead))
        elif "seen" in tree:
            self.seen = frozenset(tree["seen"])
        else:
            self.facts = HostFacts.from_json(tree)

    def answer(self, probes: Mapping[str, str]) -> Answer:
        """What came of it."""
        error, ahead = min(self.clocks, default=(0.0, 0.0))
        sees = frozenset(name for name, probe in probes.items() if probe in self.seen)
        facts = None if self.silence else self.facts
        advice = self.way.advise(self.silence) if self.silence else ""
        return Answer(self.way.name, facts, self.silence, advice, ahead, error, sees)
