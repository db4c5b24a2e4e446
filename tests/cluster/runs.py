"""A small run that a script of launch/ starts on simulated hosts, and what can happen to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roots.checkpoint import folders
from roots.config import RunConfig, dump_config
from tests.cluster.hosts import Hosts, wait_until
from tests.helpers.runs import small_config, write_dataset
from tests.helpers.sources import ROOT

PATIENCE = 240.0
# Who waits for a host that is gone does so for no longer.
WATCH_SECONDS = 10.0
_RANK = re.compile(r"\S*python\S* -u \S*launch/rank\.py train ")


@dataclass
class Start:
    """One start of a run by a script, as it goes."""

    hosts: Hosts
    run: RunConfig
    process: subprocess.Popen[str]
    codes: dict[int, int] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """What the script and its ranks have written, both streams."""
        return "".join(self.output)

    def step(self) -> int:
        """The last step that is recorded; 0 before the first."""
        return last_step(self.run)

    def after_step(self, step: int) -> None:
        """Wait until `step` is done. Raises AssertionError if the run ends before."""

        def done() -> bool:
            assert self.process.poll() is None, self.said
            return self.step() >= step

        wait_until(done, f"step {step} is done", PATIENCE)

    def ranks(self) -> dict[int, int]:
        """The processes of the ranks, numbers of this machine, by rank."""
        found = {}
        for host in self.hosts.names:
            for process in self._processes(host):
                with suppress(OSError, KeyError):
                    found[int(environment_of(process)["RANK"])] = process
        return found

    def left(self) -> list[str]:
        """What runs on hosts that ranks or launchers of this run are on.

        Not sshd's sessions, nor what Slurm keeps for a step whose end it cannot tell.
        """
        return [
            f"{host}: {words}"
            for host in self.hosts.names[1:]
            if self.hosts.is_on(host)
            for words in self.hosts.processes(host).values()
            if not words.strip("'").startswith(("sshd: ", "slurmstepd: "))
        ]

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the script; its exit code."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"runs on after {seconds:g} s:\n{self.said}") from None

    def _processes(self, host: str) -> list[int]:
        if not self.hosts.is_on(host):
            return []
        return [
            number for number, words in self.hosts.processes(host).items() if _RANK.match(words)
        ]


def write_run(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """A run of a small decoder below `folder`, with its data; its file is folder/run.yaml."""
    prefix = folder / "data"
    if not prefix.with_suffix(".idx").exists():
        write_dataset(prefix, documents=200)
    named: dict[str, dict[str, Any]] = {
        "run": {"name": "run"},
        "training": {"steps": 40},
        "checkpoint": {"every_steps": 10},
        "watchdog": {"timeout_seconds": WATCH_SECONDS},
    }
    for name, fields in sections.items():
        named.setdefault(name, {}).update(fields)
    config = small_config(prefix, folder, **named)
    (folder / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    return config


@contextmanager
def start(
    hosts: Hosts,
    run: RunConfig,
    script: Sequence[str],
    host: str = "head",
    *starter: str,
    **environment: str,
) -> Iterator[Start]:
    """Start `script`, words before CONFIG with the name of a file in launch/ first, on `host`.

    `starter` is what starts it there, if not bash.
    """
    folder = Path(run.run.directory)
    words = [*(starter or ["bash"]), f"{ROOT}/launch/{script[0]}", *script[1:]]
    words.append(str(folder / "run.yaml"))
    values = {
        "VIRTUAL_ENV": str(Path(sys.executable).parents[1]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        **environment,
    }
    with hosts.started(host, *words, **values) as process:
        going = Start(hosts, run, process)
        streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
        threads = [threading.Thread(target=_read, args=(going, stream)) for stream in streams]
        threads.append(threading.Thread(target=_watch, args=(going,)))
        for thread in threads:
            thread.start()
        try:
            yield going
        finally:
            process.kill()
            process.wait()
            threads[-1].join()


def last_step(run: RunConfig) -> int:
    """The last step in the metrics of a run; 0 before the first."""
    with suppress(OSError, IndexError, ValueError):
        lines = (run.run_directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return int(json.loads(lines[-1])["step"])
    return 0


def losses(run: RunConfig) -> dict[int, float]:
    """The losses of a run by step; of a step that was done again, the last."""
    lines = (run.run_directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {each["step"]: each["loss"] for each in map(json.loads, lines) if "loss" in each}


def saved_step(run: RunConfig) -> int:
    """The step of the newest finished checkpoint; 0 without one."""
    finished = folders.finished_checkpoints(run.run_directory / folders.CHECKPOINTS_FOLDER)
    return folders.step_of(finished[-1]) if finished else 0


def environment_of(process: int) -> dict[str, str]:
    """The environment that a process was started with."""
    words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    pairs = (word.decode(errors="replace").partition("=") for word in words if word)
    return {name: value for name, _, value in pairs}


def _read(going: Start, stream: Any) -> None:
    with suppress(ValueError):
        for line in stream:
            going.output.append(line)


def _codes(place: Path) -> list[Path]:
    """The codes recorded at `place`, which may go while it is read."""
    try:
        return [*place.glob("*.code"), *place.glob("*/*.code")]
    except OSError:
        return []


def _watch(going: Start) -> None:
    """Note the codes that ranks record, before the script removes them."""
    places = set[Path]()
    looked = 0.0
    pause = threading.Event()
    while going.process.poll() is None:
        if time.monotonic() > looked + 1 and len(places) < len(going.hosts.names):
            looked = time.monotonic()
            for process in going.ranks().values():
                with suppress(OSError, KeyError):
                    records = environment_of(process)["ROOTS_RANK_RECORDS"]
                    places.add(Path(os.path.dirname(records) if "%h" in records else records))
        for place in places:
            for file in _codes(place):
                with suppress(OSError, ValueError, IndexError):
                    going.codes[int(file.stem)] = int(file.read_text("ascii").split()[1])
        pause.wait(0.02)
