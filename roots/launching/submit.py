"""Giving a job file to sbatch, whose refusal is bad input."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from roots.errors import ExitCode, RootsError, problem
from roots.launching.stop import Stopped, held_signals, stopped_by_signals


def submit(command: Sequence[str], files: Sequence[Path]) -> int:
    """Run sbatch, whose output passes through, and return its exit code once there is a job.

    With --wait that is the job's own; a signal ends the wait alone, and with code 3. Raises
    RootsError where no job came of it; `files`, which were written for it, are removed then.
    """
    job: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            with stopped_by_signals():
                code = _run(command, errors, job)
        except OSError as error:
            _remove(files)
            rule, fix = f"cannot be run ({error.strerror})", "install it, or put it on PATH"
            raise RootsError(problem("command", command[0], rule, fix)) from None
        except Stopped as stop:
            _tell([_words_of_stop(str(stop), job)])
            return int(ExitCode.INTERRUPTED)
        errors.seek(0)
        told = errors.read().splitlines()
    if job or code == 0:
        _tell(told)
        return code
    _remove(files)
    _tell(told[:-1])
    last = told[-1].removeprefix("sbatch: ") if told else f"exit code {code}"
    fix = "change --time, --partition, --nodes or --option; no job file is left"
    raise RootsError(problem("--via", "slurm", f"sbatch takes no such job ({last})", fix))


def _run(command: Sequence[str], errors: IO[str], job: list[str]) -> int:
    """Run sbatch to its end; `job` gets the lines of its output, which tell of one."""
    with held_signals():
        process = subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=errors, text=True)
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                job.append(line)
                sys.stdout.write(line)
                sys.stdout.flush()
        except Stopped:
            process.terminate()
            raise
    return process.returncode


def _words_of_stop(name: str, job: Sequence[str]) -> str:
    """What a signal leaves: sbatch says `Submitted batch job 12`, or `12` where it is told to."""
    number = re.search("[0-9]+", "".join(job))
    if number is None:
        return f"roots launch: stopped by {name}, sbatch has told of no job; `squeue --me` is sure"
    return (
        f"roots launch: stopped by {name}; job {number[0]} goes on, `scancel {number[0]}` ends it"
    )


def _tell(lines: Sequence[str]) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        with suppress(OSError):
            path.unlink()
