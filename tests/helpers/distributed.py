"""Run a function on N real Gloo processes and bring back its results, or its first failure."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import torch.distributed as dist

_HOST = "127.0.0.1"
_PRELOADED = ["tests.helpers.preloaded"]


class RankFailure(AssertionError):
    """A rank raised, died or did not end in time; the message holds its traceback."""


def run_distributed(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_seconds: float = 120.0
) -> list[Any]:
    """Call function(rank, world_size, *args) in `world_size` processes; the results by rank.

    `function` must live at the top level of an importable module. torch.distributed (Gloo) is
    initialised, torch runs one thread, and RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
    are set. Raises RankFailure with the first traceback; no process outlives the call.
    """
    context = fork_context()
    # This process holds the store on a port that the system picks, so no two runs can collide.
    store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    # Plain pickle: torch's own reductions would tie a tensor to the life of the process it is from.
    task = pickle.dumps((function, args))
    processes, pipes = [], []
    try:
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (rank, world_size, store.port, timeout_seconds, task, theirs)
            process = context.Process(target=_run_rank, args=arguments)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        return _collect(pipes, timeout_seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def fork_context() -> ForkServerContext:
    """Starts processes as forks of a server that has imported once what takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _collect(pipes: list[Connection], timeout_seconds: float) -> list[Any]:
    results: list[Any] = [None] * len(pipes)
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    deadline = time.monotonic() + timeout_seconds
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = sorted(waiting.values())
            raise RankFailure(f"ranks {late} did not end within {timeout_seconds} s")
        for pipe in [pipe for pipe in waiting if pipe in ready]:
            rank = waiting.pop(pipe)
            try:
                succeeded, results[rank] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise RankFailure(f"rank {rank} died without a word") from None
            if not succeeded:
                raise RankFailure(f"rank {rank} failed:\n{results[rank]}")
    return results


def _run_rank(
    rank: int, world_size: int, port: int, timeout_seconds: float, task: bytes, pipe: Connection
) -> None:
    try:
        torch.set_num_threads(1)
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        places.update(LOCAL_WORLD_SIZE=world_size, MASTER_PORT=port, OMP_NUM_THREADS=1)
        os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR=_HOST)
        # Longer than the caller waits, so that it is always the caller who ends a hang.
        timeout = timedelta(seconds=2 * timeout_seconds)
        store = dist.TCPStore(_HOST, port, world_size, is_master=False, timeout=timeout)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout
        )
        function, args = pickle.loads(task)
        outcome = pickle.dumps((True, function(rank, world_size, *args)))
        # A rank that ends while another still talks to it would break that one's connection.
        dist.barrier()
    except BaseException:  # noqa: BLE001 - the parent raises what happened, whatever it was
        outcome = pickle.dumps((False, traceback.format_exc()))
    pipe.send_bytes(outcome)
