"""A run that faults are done to, and whether it leaves what an undisturbed one leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roots.checkpoint import folders
from roots.config import RunConfig, dump_config
from roots.errors import ExitCode
from roots.training.callbacks.metrics import read_metrics
from tests.faults.arming import Armed
from tests.faults.ranks import Ranks
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import differences, state_of

# A start, a save or the end of ranks that others wait for takes no longer, on any machine.
PATIENCE = 180.0
WATCH_SECONDS = 10.0
# More than a line of metrics.jsonl has.
_LAST_BYTES = 1 << 14


@dataclass
class Scene:
    """A run of `world_size` ranks below `folder`, whose faults are drawn from `random`.

    step_seconds: what a step waits, as for a device. moment: of time.monotonic(), at which the next
    fault comes, or as soon after as training goes on; None: it comes after some steps.
    """

    folder: Path
    config: RunConfig
    world_size: int
    random: random.Random
    starts: int = 0
    step_seconds: float = 0.0
    moment: float | None = None
    told: list[str] = field(default_factory=list)
    # What has to be told yet, by a start that comes after so many.
    owed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The folder of the shared checkpoints."""
        return self.config.run_directory / folders.CHECKPOINTS_FOLDER

    @property
    def data(self) -> Path:
        """The file with the tokens."""
        return self.folder / "data.bin"

    @contextmanager
    def ranks(self, fault: Armed | None = None) -> Iterator[Ranks]:
        """One start of the run; nobody of it is left afterwards."""
        self.starts += 1
        log = self.folder / f"start_{self.starts:03d}.log"
        file = self.folder / "run.yaml"
        file.write_text(dump_config(self.config), encoding="utf-8")
        with Ranks(file, self.world_size, log, fault, self.step_seconds) as ranks:
            yield ranks
        self.told.append(ranks.said())

    def step(self) -> int:
        """The last step that is recorded."""
        path = self.config.run_directory / "metrics.jsonl"
        with suppress(OSError, IndexError, ValueError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            return int(json.loads(file.read().splitlines()[-1])["step"])
        return 0

    def done(self) -> bool:
        """Whether the run has come to its end."""
        return self.step() >= self.config.training.steps

    def saved(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return folders.finished_checkpoints(self.root)

    def victim(self) -> int:
        """Any rank."""
        return self.random.randrange(self.world_size)

    def after_steps(self, ranks: Ranks, count: int) -> bool:
        """Wait until `count` further steps are recorded; False if the run ends before."""
        first = self.step()
        last = self.config.training.steps
        return ranks.until(lambda: self.step() >= min(first + count, last - 1), PATIENCE)

    def until_fault(self, ranks: Ranks, steps: int) -> bool:
        """Wait for the fault's moment, or for `steps` of them; False if the run ends before."""
        if self.moment is None:
            return self.after_steps(ranks, steps)
        return self.after_steps(ranks, 1) and ranks.until_moment(self.moment)

    def seconds_to_fault(self) -> float:
        """How long it is to the fault's moment; 0 if it has none, or that has passed."""
        return max(0.0, (self.moment or 0.0) - time.monotonic())

    def steps_to_fault(self, most: int) -> int:
        """In which step from now, or from the fault's moment, it comes."""
        return 1 if self.moment is not None else 1 + self.random.randrange(most)

    def any_moment(self, ranks: Ranks, most: float) -> None:
        """Let up to `most` seconds pass."""
        end = time.monotonic() + self.random.uniform(0.0, most)
        ranks.until(lambda: time.monotonic() > end, most + PATIENCE)

    def finish(self, tries: int = 3) -> None:
        """Start the run again, as its user does, until it is done. Raises AssertionError."""
        for _ in range(tries):
            with self.ranks() as ranks:
                codes = ranks.wait(PATIENCE + 0.5 * self.config.training.steps)
            if set(codes) == {ExitCode.DONE}:
                assert all(words in "".join(self.told[n:]) for n, words in self.owed), self.owed
                return
        raise AssertionError(f"the run does not end after {tries} starts: {codes}\n{self.told[-1]}")


def make_scene(
    folder: Path, world_size: int, seed: int, steps: int, **sections: dict[str, Any]
) -> Scene:
    """A small decoder on two replicas, each of half of the ranks."""
    prefix = write_dataset(folder / "data", documents=200)
    named: dict[str, dict[str, Any]] = {
        "run": {"name": "run"},
        "parallel": {"tensor": world_size // 2, "zero_stage": 1},
        "model": {"dropout": 0.1},
        "training": {"steps": steps, "precision": "bf16"},
        "evaluation": {"every_steps": 0},
        "checkpoint": {
            "every_steps": 10,
            "keep_last": 3,
            "local_every_steps": 4,
            "local_directory": str(folder / "memory"),
        },
        "anomaly": {"non_finite": "stop"},
        "checks": {"replay_every_steps": 1, "pace_every_steps": 2},
        "watchdog": {"timeout_seconds": WATCH_SECONDS, "busy_seconds": 30.0},
    }
    for name, fields in sections.items():
        named.setdefault(name, {}).update(fields)
    config = small_config(prefix, folder, **named)
    return Scene(folder, config, world_size, random.Random(seed))


def undisturbed(scene: Scene) -> Scene:
    """The same run, to its end, with nothing done to it."""
    run = scene.config.run.model_copy(update={"name": "undisturbed"})
    checkpoint = scene.config.checkpoint.model_copy(update={"local_every_steps": 0})
    config = scene.config.model_copy(update={"run": run, "checkpoint": checkpoint})
    other = Scene(scene.folder, config, scene.world_size, scene.random, starts=900)
    other.finish(tries=1)
    return other


def check_equal(scene: Scene, reference: Scene) -> None:
    """Every step once, with the loss and the samples that it has undisturbed; the same state."""
    mine, theirs = (
        read_metrics(each.config.run_directory / "metrics.jsonl") for each in (scene, reference)
    )
    steps = list(range(1, scene.config.training.steps + 1))
    assert [record.step for record in mine] == steps
    assert [(r.loss, r.consumed_samples) for r in mine] == [
        (r.loss, r.consumed_samples) for r in theirs
    ]
    assert differences(*(state_of(each.saved()[-1]) for each in (scene, reference))) == []


def no_process_left(pids: list[int]) -> bool:
    """Whether all of these processes are gone, stopped ones too."""
    return not any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids)


def _state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    return "Z"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """`folder` on a disk of that size, in memory. Raises PermissionError where none can be made."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise PermissionError(made.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left below `folder`, once more if need be; the file that has it."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * (1 << 20)):
            pass
    return ballast


def flip_byte(path: Path, source: random.Random) -> None:
    """Change one bit of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(content)


def stop_all(ranks: Ranks, number: signal.Signals) -> None:
    """Send a signal to every rank."""
    for rank in range(ranks.world_size):
        with suppress(ProcessLookupError):
            ranks.send(rank, number)


def truncate(path: Path, share: float) -> None:
    """Cut a file short."""
    os.truncate(path, int(path.stat().st_size * share))
