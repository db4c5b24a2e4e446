"""Commands in a fork of the server that has torch and DeepSpeed loaded, in place of a new start.

A real process with an exit code and output of its own; it only spares the seconds that importing
them anew takes. Where the start itself is what a test is about, use `subprocess`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.distributed import fork_context


def run_roots(*words: str | Path, timeout_seconds: float = 120.0) -> subprocess.CompletedProcess:
    """What `python -m roots.cli.main WORDS` does, with its exit code, stdout and stderr."""
    return _run(["roots", *map(str, words)], timeout_seconds)


def run_python(*words: str | Path, timeout_seconds: float = 120.0) -> subprocess.CompletedProcess:
    """What `python WORDS` does: WORDS are a script, or -m and a module, then arguments."""
    return _run(["python", *map(str, words)], timeout_seconds)


def _run(words: Sequence[str], timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="command-") as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        arguments = (words, os.getcwd(), dict(os.environ), files)
        process = fork_context().Process(target=_become, args=arguments)
        process.start()
        process.join(timeout_seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout_seconds)
        stdout, stderr = (path.read_text("utf-8") for path in files)
        return subprocess.CompletedProcess(words, process.exitcode, stdout, stderr)


def _become(
    words: Sequence[str], folder: str, environment: dict[str, str], files: Sequence[Path]
) -> None:
    """Run in the fork, with the standard output and error in `files`."""
    for number, path in enumerate(files, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    run_here(words, folder, environment)


def run_here(words: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
    """Let this fork be a command: `words` are "roots" or "python" and their arguments."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    program, *arguments = words
    if program == "roots":
        from roots.cli.main import main

        sys.argv = ["roots", *arguments]
        main()
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")
