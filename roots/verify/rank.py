"""One process of `roots verify`: trains a config as a rank and leaves what it found in files.

Imports of torch and of all that trains wait until the process is the rank: see launch.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path

from roots.errors import RootsError
from roots.files import write_atomically


def run_rank(folder: Path, rank: int, environment: Mapping[str, str]) -> None:
    """Train FOLDER/config.yaml as this rank and leave beside it the curve, or the user's error.

    All that the process says goes to its log there. Ends it with the error's exit code.
    """
    end_with_the_starter()
    with open(log_file(folder, rank), "wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        curve_file(folder, rank).write_bytes(_train(folder, rank, environment))
    except RootsError as error:
        # Whole or not at all: verify looks for it as soon as any rank has ended.
        told = {"lines": error.lines, "exit_code": int(error.exit_code)}
        write_atomically(error_file(folder, rank), json.dumps(told))
        sys.stderr.writelines(f"roots: error: {line}\n" for line in error.lines)
        sys.exit(int(error.exit_code))


def end_with_the_starter() -> None:
    """End this process as soon as the one that started it has ended, however that came.

    A rank would wait half an hour for others that were never started.
    """
    starter = multiprocessing.parent_process()
    assert starter is not None, "a rank is started by launch"

    def watch() -> None:
        wait([starter.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(folder: Path, rank: int, environment: Mapping[str, str]) -> bytes:
    """The curve of this rank, pickled."""
    from roots.config import load_config
    from roots.device import set_environment

    # Before CUDA is asked for anything: it may be hidden from this rank.
    set_environment(environment)
    import torch

    from roots.log import configure
    from roots.parallel import process
    from roots.verify.curve import train_curve

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    configure(rank=rank)
    curve = train_curve(load_config(folder / "config.yaml"))
    process.shutdown()
    return pickle.dumps(curve)


def curve_file(folder: Path, rank: int) -> Path:
    """Where `rank` leaves its curve."""
    return folder / f"rank_{rank}.curve"


def error_file(folder: Path, rank: int) -> Path:
    """Where `rank` leaves the lines and the exit code of the RootsError with which it ended."""
    return folder / f"rank_{rank}.error"


def log_file(folder: Path, rank: int) -> Path:
    """Where all goes that `rank` prints."""
    return folder / f"rank_{rank}.log"
