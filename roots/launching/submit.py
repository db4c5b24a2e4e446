"""Giving a job file to sbatch, whose refusal is bad input."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from roots.errors import RootsError, problem


def submit(command: Sequence[str], files: Sequence[Path]) -> int:
    """Run sbatch, whose output passes through, and return its exit code once there is a job.

    With --wait that is the job's own. Raises RootsError where no job came of it; `files`, which
    were written for it, are removed then.
    """
    submitted = False
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            with subprocess.Popen(
                list(command), stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    submitted = True
                    sys.stdout.write(line)
                    sys.stdout.flush()
        except OSError as error:
            _remove(files)
            rule, fix = f"cannot be run ({error.strerror})", "install it, or put it on PATH"
            raise RootsError(problem("command", command[0], rule, fix)) from None
        errors.seek(0)
        told = errors.read().splitlines()
    if submitted or process.returncode == 0:
        _tell(told)
        return process.returncode
    _remove(files)
    _tell(told[:-1])
    last = told[-1].removeprefix("sbatch: ") if told else f"exit code {process.returncode}"
    fix = "change --time, --partition, --nodes or --option; no job file is left"
    raise RootsError(problem("--via", "slurm", f"sbatch takes no such job ({last})", fix))


def _tell(lines: Sequence[str]) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        with suppress(OSError):
            path.unlink()
