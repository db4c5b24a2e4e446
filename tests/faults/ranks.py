"""The ranks of a run as processes that may be killed, stopped or made to go wrong in one place.

They are forks of a server that has torch and DeepSpeed loaded; all else is what `roots train` does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.arming import Armed, armed, device_time
from tests.helpers.distributed import fork_context

_POLL_SECONDS = 0.005


@dataclass
class Ranks:
    """One start of a run: `config` trained by `world_size` processes, with `fault` in them.

    step_seconds: what each waits in a step, as for a device.
    """

    config: Path
    world_size: int
    log: Path
    fault: Armed | None = None
    step_seconds: float = 0.0
    processes: list[BaseProcess] = field(default_factory=list)

    def __enter__(self) -> Ranks:
        context = fork_context()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self.world_size):
            arguments = (rank, self.world_size, port, self.config, self.log, self.fault)
            # multiprocessing's contexts have a Process each, of which typeshed knows no common one.
            named = {"step_seconds": self.step_seconds}
            process = context.Process(target=_train, args=arguments, kwargs=named)
            process.start()
            self.processes.append(process)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def pids(self) -> list[int]:
        """The processes, by rank."""
        return [process.pid or 0 for process in self.processes]

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank, if it still runs."""
        if self.processes[rank].is_alive():
            os.kill(self.pids()[rank], number)

    def running(self) -> bool:
        """Whether any rank still runs."""
        return any(process.is_alive() for process in self.processes)

    def wait(self, seconds: float) -> list[int]:
        """How each rank ended (negative: by that signal). Nobody is made to end.

        Raises AssertionError naming the ranks that have not after `seconds`.
        """
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        left = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        assert not left, f"ranks {left} are left after {seconds} s:\n{self.said()}"
        return [int(process.exitcode or 0) for process in self.processes]

    def said(self) -> str:
        """What all ranks have printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def until(self, condition: Callable[[], bool], seconds: float, *, vain: bool = False) -> bool:
        """Wait until `condition` holds, in vain if the ranks end before; False then.

        Raises AssertionError where it does not within `seconds`, unless that may be in `vain`.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.running():
                return condition()
            if vain and time.monotonic() > deadline:
                return False
            assert time.monotonic() < deadline, f"waited {seconds} s in vain:\n{self.said()}"
            self._pause()
        return True

    def until_moment(self, moment: float) -> bool:
        """Wait until time.monotonic() comes to `moment`; False if all ranks end before."""
        left = {process.sentinel for process in self.processes if process.is_alive()}
        while left and time.monotonic() < moment:
            left -= {*wait(list(left), moment - time.monotonic())}
        return bool(left)

    def _pause(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.join(_POLL_SECONDS)
                return


def _train(
    rank: int,
    world_size: int,
    port: int,
    config: Path,
    log: Path,
    fault: Armed | None,
    *,
    step_seconds: float,
) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    places.update(LOCAL_WORLD_SIZE=world_size, MASTER_PORT=port, OMP_NUM_THREADS=1)
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from roots.cli.main import main

    code = 1
    try:
        with armed(fault, rank), device_time(step_seconds):
            main(["train", str(config)])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001  # as the interpreter does at the end of a process
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
