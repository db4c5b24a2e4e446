"""The ranks of a proof: real processes of this machine, forked from one that has torch loaded.

To import torch and DeepSpeed takes a process seconds, so a server imports them once and every rank
is a fork of it (multiprocessing's fork server, which ends with this process). On a machine with
GPUs it has torch alone: DeepSpeed asks for the GPU when it is imported, and a process that has a
GPU cannot be forked. A rank leaves its log, and its curve or its error, in the folder of its run.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.device import device_count, name_accelerator, rank_environment
from roots.errors import ExitCode, RootsError, problem
from roots.verify.compare import Curve
from roots.verify.rank import curve_file, error_file, log_file, run_rank

TIMEOUT_SECONDS = 600.0
_WITHOUT_GPUS = ["torch._dynamo", "deepspeed", "roots.verify.curve"]
_WITH_GPUS = ["torch"]


def launch(
    config: RunConfig,
    ranks: int,
    folder: Path,
    on_gpus: bool,
    ended: Callable[[int], None] = lambda count: None,
) -> list[Curve]:
    """Train `config` with `ranks` processes; their curves by rank.

    `folder` is made. `ended` is told how many of them have ended well.
    Raises a rank's own RootsError, with its exit code; of any other failure one naming the rank
    that failed first, its last line and its log. The others are ended then, as they are after
    TIMEOUT_SECONDS.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    name_accelerator()
    context = multiprocessing.get_context("forkserver")
    # Of no effect where a server runs already.
    context.set_forkserver_preload(_WITH_GPUS if device_count() else _WITHOUT_GPUS)
    port = _free_port()
    processes: list[BaseProcess] = []
    try:
        for rank in range(ranks):
            environment = rank_environment(rank, ranks, port, on_gpus)
            process = context.Process(target=run_rank, args=(folder, rank, environment))
            process.start()
            processes.append(process)
        _wait(processes, folder, ended)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [read_curve(folder, rank) for rank in range(ranks)]


def read_curve(folder: Path, rank: int) -> Curve:
    """The curve that `rank` has left in `folder`."""
    curve = pickle.loads(curve_file(folder, rank).read_bytes())
    assert isinstance(curve, Curve)
    return curve


def _wait(processes: Sequence[BaseProcess], folder: Path, ended: Callable[[int], None]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    running = dict(enumerate(processes))
    while running:
        remaining = max(0.0, deadline - time.monotonic())
        if not wait([process.sentinel for process in running.values()], timeout=remaining):
            raise _failure(folder, min(running), f"did not end within {TIMEOUT_SECONDS:.0f} s")
        for rank, process in list(running.items()):
            # Asked once: it may end between two questions.
            code = process.exitcode
            if code == 0:
                del running[rank]
                ended(len(processes) - len(running))
            elif code is not None:
                _raise_told(folder, len(processes))
                raise _failure(folder, rank, f"ended with exit code {code}")


def _raise_told(folder: Path, ranks: int) -> None:
    """Raise the RootsError of the first rank that left one, if any did.

    Whichever rank is seen to end first: others may have ended because they lost that one.
    """
    for rank in range(ranks):
        path = error_file(folder, rank)
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            raise RootsError(*told["lines"], exit_code=ExitCode(told["exit_code"]))


def _failure(folder: Path, rank: int, rule: str) -> RootsError:
    log = log_file(folder, rank)
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = said.strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    fix = f"read {log}"
    return RootsError(
        problem(f"rank {rank}", None, f"{rule} ({last})", fix), exit_code=ExitCode.BUG
    )


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
