"""The run folder belongs to one run at a time: global rank 0 takes it for all ranks, first of all.

It does so before torch is imported, and begins the run's ledger at once, so that a start that dies
in its imports is known to have been one. Whoever is refused the folder is told when all ranks have
met, which then end together. Works without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from roots.config.run import RunConfig
from roots.device import slurm_job
from roots.errors import RootsError, code_of, cure_of, problem
from roots.lock import RUN_LOCK_NAME, Ownership, Place, owned
from roots.training.callbacks.ledger import LEDGER_FILE, Ledger


@dataclass(frozen=True)
class Opening:
    """How this process has begun: its ledger, on global rank 0 that of the run, which it owns.

    refusal: why it does not own it.
    """

    ledger: Ledger
    ownership: Ownership | None = None
    refusal: RootsError | None = None

    def own(self) -> Ownership | None:
        """The right to write there; None on ranks other than 0. Raises RootsError if refused."""
        if self.refusal is not None:
            raise self.refusal
        return self.ownership


@contextmanager
def open_run(config: RunConfig, rank: int, started: float) -> Iterator[Opening]:
    """On global rank 0, own the folder of the run, and write into its ledger that and how it ends.

    On all ranks the ledger tells the watchdog, by its marks, what they are at. `started`: since
    when this process serves the run, in seconds since the epoch. Raises nothing of its own.
    """
    path = config.run_directory / LEDGER_FILE
    if rank != 0:
        ledger = Ledger()
        ledger.marks.outlived = partial(ledger.tell_end, path)
        yield Opening(ledger)
        return
    fix = "wait for that run or end it, or set another run.name"
    place = Place(
        "run folder",
        "the run is recorded there",
        fix,
        value=str(config.run_directory),
        unwritable=partial(_unwritable, config),
    )
    lock = config.run_directory / RUN_LOCK_NAME
    # Whoever gives the folder up takes its lock away.
    found = last_sign(lock)
    with ExitStack() as stack:
        try:
            ownership = stack.enter_context(owned(lock, place, job=slurm_job()))
        except RootsError as error:
            opening = Opening(Ledger(), refusal=error)
        else:
            opening = Opening(stack.enter_context(Ledger(path, started=started)), ownership)
            opening.ledger.start(found)
        yield opening


def last_sign(lock: Path) -> float | None:
    """When the owner in the file `lock`, which has ended, last showed that it lived.

    In seconds since the epoch, up to lock.BEAT_SECONDS before its end; None without such a file.
    """
    try:
        return lock.stat().st_mtime
    except OSError:
        return None


def _unwritable(config: RunConfig, error: OSError) -> RootsError:
    """The one line on a folder of the run that cannot be made or written."""
    folder, runs = config.run_directory, Path(config.run.directory)
    field, value = "run.directory", config.run.directory
    rule = f"the run's folder {folder} cannot be written ({error.strerror})"
    if isinstance(error, FileExistsError) and runs.is_dir():
        field, value, fix = "run.name", config.run.name, "move that file away, or set another"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        fix = "set it to a folder, which a file is not"
    else:
        fix = f"{cure_of(error)}, or set it to another folder"
    return RootsError(problem(field, value, rule, fix), exit_code=code_of(error))
