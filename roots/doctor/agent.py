"""What `roots doctor` starts on every host: measures what it is asked to, and tells it in JSON.

    python -m roots.doctor.agent [--folder DIR]

Every line of standard input is a question, `{"do": NAME, ...}`, and every line printed the answer
to one. One process for each GPU of the host, or one for its processors, does the work on devices;
it ends with this one, and this one with its input.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from roots.checkpoint.disk_rate import measure_disk
from roots.doctor.counters import counters_here
from roots.launching.environment import variable
from roots.launching.host_facts import gpus_here

_DISK_BYTES = 64 << 20
_DISK_REPEATS = 3
# The slowest disk worth waiting for is done by then.
_DISK_SECONDS = 6.0


class Worker:
    """A process for one device. It is a fork of this one, which has not loaded torch."""

    def __init__(self, number: int, on_gpu: bool = False) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process: ForkProcess = context.Process(
            target=_work, args=(number, on_gpu, theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def ask(self, name: str, words: Mapping[str, Any]) -> None:
        """Begin to do it."""
        if self.process.is_alive():
            self.connection.send((name, dict(words)))

    def answer(self, deadline: float) -> dict[str, Any]:
        """What came of it, `error` where nothing did; a process that hangs is ended."""
        try:
            if self.connection.poll(max(0.0, deadline - time.monotonic())):
                answer: dict[str, Any] = self.connection.recv()
                return answer
        except (EOFError, OSError):
            self.process.join(1.0)
            return {"error": f"its process ended with code {self.process.exitcode}"}
        self.process.kill()
        # What waits for a device or a disk may not even die.
        self.process.join(1.0)
        return {"error": "did not come to an end"}


def _work(number: int, on_gpu: bool, connection: Connection) -> None:
    """The process of a device, until the other end is closed."""
    # What is printed here is no answer.
    os.dup2(2, 1)
    work: Any = None
    while True:
        try:
            name, words = connection.recv()
        except EOFError:
            return
        try:
            if work is None:
                from roots.doctor.device_work import DeviceWork

                work = DeviceWork(number, on_gpu)
            answer = getattr(work, name)(**words)
        except Exception as error:  # noqa: BLE001 - whatever fails here is what is looked for
            answer = {"error": str(error).strip().splitlines()[0][:200] or type(error).__name__}
        connection.send(answer)


class Agent:
    """Answers questions on this host."""

    def __init__(self, folder: Path, workers: Sequence[Worker]) -> None:
        self.folder = folder
        self.workers = workers

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """`{"do": "disk"}`, "counters", "ports", or what all devices do at once ("devices")."""
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "disk": self._disk,
            "counters": lambda: {"counters": counters_here()},
            "ports": lambda: {"ports": free_ports(len(self.workers))},
            "devices": lambda: self._devices(**question["work"]),
        }
        return parts[question["do"]]()

    def _disk(self) -> dict[str, Any]:
        """Its rate; `no_folder` where there is nothing to measure: any other disk says nothing."""
        if not self.folder.is_dir():
            return {"rate": None, "no_folder": True}
        deadline = time.monotonic() + _DISK_SECONDS
        best: float | None = None
        for _ in range(_DISK_REPEATS):
            rate = measure_disk(self.folder, _DISK_BYTES)
            best = rate if best is None or rate is None else max(best, rate)
            if rate is None or time.monotonic() > deadline:
                break
        return {"rate": best}

    def _devices(
        self, name: str, seconds: float, words: Mapping[str, Any], count: int | None = None
    ) -> dict[str, Any]:
        """What the first `count` devices answer, all by default."""
        deadline = time.monotonic() + seconds
        asked = self.workers[:count]
        for worker in asked:
            worker.ask(name, words)
        return {"devices": [worker.answer(deadline) for worker in asked]}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def visible(gpus: int, chosen: str) -> int:
    """How many of the host's `gpus` programs see; `chosen` is CUDA_VISIBLE_DEVICES."""
    words = [word for word in chosen.split(",") if word.strip() not in ("", "-1")]
    return min(gpus, len(words)) if chosen else gpus


def main() -> None:
    """Answer until there are no more questions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="whose disk is measured")
    folder = parser.parse_args().folder
    gpus = visible(len(gpus_here()[0]), variable("CUDA_VISIBLE_DEVICES"))
    agent = Agent(folder, [Worker(number, gpus > 0) for number in range(max(1, gpus))])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(agent.answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
