"""The proof behind `roots verify`: a small copy of a config, in its layout and on one process.

Both are trained for ten steps in fp32 with real processes of this machine: one `verify_rank` each,
which reads its config from a folder and leaves its curve and its log there.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.config.shrink import one_process, reduced_degrees, shrink
from roots.data.indexed import IndexedWriter
from roots.device import device_count, rank_environment
from roots.errors import ExitCode, RootsError, problem
from roots.log import Report, silent
from roots.verify.compare import Comparison, Curve, compare

TOLERANCE = 1e-5
TIMEOUT_SECONDS = 600.0
_POLL_SECONDS = 0.05
_DOCUMENTS, _LONGEST_DOCUMENT = 200, 40


@dataclass(frozen=True)
class Verdict:
    """What was compared, and what came out; `reduced` says which degrees were made smaller."""

    config: RunConfig
    ranks: int
    device: str
    comparison: Comparison
    reference: Curve
    seconds: float
    reduced: tuple[str, ...] = ()


def verify(config: RunConfig, ranks: int, folder: Path, report: Report = silent) -> Verdict:
    """Train the small copy of `config` on one process and on `ranks`, and compare.

    `folder` gets configs, data, curves, and a log of every rank. Raises RootsError where no small
    copy is legal, or where a rank fails, as `launch` does.
    """
    started = time.monotonic()
    prefix = folder / "data"
    small = shrink(config, ranks, {"train": [str(prefix)], "valid": []})
    # The last ids hide tokens where those are to be guessed.
    write_documents(prefix, small.model.vocab_size * 3 // 4)
    on_gpus = device_count() >= ranks
    # Counted in processes: that of the reference, then those of the layout.
    (reference,) = launch(one_process(small), 1, folder / "one-process", on_gpus)
    report(1, 1 + ranks)
    curves = launch(
        small, ranks, folder / "layout", on_gpus, lambda ended: report(1 + ended, 1 + ranks)
    )
    seconds = time.monotonic() - started
    comparison = compare(reference, curves, TOLERANCE)
    device = "cuda" if on_gpus else "cpu"
    reduced = reduced_degrees(config, small, ranks)
    return Verdict(small, ranks, device, comparison, reference, seconds, reduced)


def default_ranks(config: RunConfig, most: int) -> int:
    """Processes to start where nobody says: two replicas, so that ZeRO has something to divide.

    A multiple of what experts are spread over, or of two where that would be more than `most`.
    Where one replica is too many already, the largest power of two: `shrink` halves the degrees to
    fit it, and would leave none of them on an odd number of ranks.
    """
    parallel = config.parallel
    replica = parallel.model_ranks * parallel.context
    wanted = replica * max(2, parallel.zero_hpz_partition_size)
    sizes = [
        parallel.model_ranks * math.lcm(replicas, expert)
        for expert in dict.fromkeys((parallel.expert, min(2, parallel.expert)))
        for replicas in (wanted // parallel.model_ranks, parallel.context)
    ]
    return next(size for size in (*sizes, 1 << most.bit_length() - 1) if size <= most)


def write_documents(prefix: Path, vocab_size: int) -> None:
    """Synthetic documents that can be learned: each counts up from a random token."""
    generator = np.random.default_rng(7)
    with IndexedWriter(prefix, vocab_size) as writer:
        for _ in range(_DOCUMENTS):
            length = int(generator.integers(5, _LONGEST_DOCUMENT))
            first = int(generator.integers(1, vocab_size))
            tokens = 1 + (first + np.arange(length)) % (vocab_size - 1)
            writer.add(np.append(tokens, 0))
        writer.finish(tokenizer="verify", end_of_document=0)


def launch(
    config: RunConfig,
    ranks: int,
    folder: Path,
    on_gpus: bool,
    ended: Callable[[int], None] = lambda count: None,
) -> list[Curve]:
    """Train `config` with `ranks` processes; their curves by rank.

    `ended` is told how many of them have ended well.
    Raises a rank's own RootsError, with its exit code; of any other failure one naming the rank
    that failed first, its last line and its log. The others are ended then, as they are after
    TIMEOUT_SECONDS.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    port = _free_port()
    processes = []
    try:
        for rank in range(ranks):
            with open(_log_of(folder, rank), "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "roots.verify.rank", str(folder)],
                    env=rank_environment(rank, ranks, port, on_gpus),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
        _wait(processes, folder, ended)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [read_curve(folder, rank) for rank in range(ranks)]


def read_curve(folder: Path, rank: int) -> Curve:
    """The curve that `rank` has left in `folder`."""
    curve = pickle.loads(curve_file(folder, rank).read_bytes())
    assert isinstance(curve, Curve)
    return curve


def curve_file(folder: Path, rank: int) -> Path:
    """Where `rank` leaves its curve."""
    return folder / f"rank_{rank}.curve"


def error_file(folder: Path, rank: int) -> Path:
    """Where `rank` leaves the lines and the exit code of the RootsError with which it ended."""
    return folder / f"rank_{rank}.error"


def _wait(
    processes: Sequence[subprocess.Popen[bytes]], folder: Path, ended: Callable[[int], None]
) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    running = dict(enumerate(processes))
    while running:
        for rank, process in list(running.items()):
            code = process.poll()
            if code == 0:
                del running[rank]
                ended(len(processes) - len(running))
            elif code is not None:
                _raise_told(folder, len(processes))
                raise _failure(folder, rank, f"ended with exit code {code}")
        if running and time.monotonic() > deadline:
            raise _failure(folder, min(running), f"did not end within {TIMEOUT_SECONDS:.0f} s")
        if running:
            # Ends early when the first of them ends; the others are looked at again soon.
            _await_one(next(iter(running.values())))


def _raise_told(folder: Path, ranks: int) -> None:
    """Raise the RootsError of the first rank that left one, if any did.

    Whichever rank is seen to end first: others may have ended because they lost that one.
    """
    for rank in range(ranks):
        path = error_file(folder, rank)
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            raise RootsError(*told["lines"], exit_code=ExitCode(told["exit_code"]))


def _await_one(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _failure(folder: Path, rank: int, rule: str) -> RootsError:
    log = _log_of(folder, rank)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    fix = f"read {log}"
    return RootsError(
        problem(f"rank {rank}", None, f"{rule} ({last})", fix), exit_code=ExitCode.BUG
    )


def _log_of(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.log"


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def most_ranks() -> int:
    """Processes that this machine takes: its GPUs, or else a few for each core, at most 8."""
    return device_count() or min(8, 4 * (os.cpu_count() or 1))
