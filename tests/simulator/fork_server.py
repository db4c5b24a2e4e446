"""Runs of tests in processes forked from one that has imported and collected what they need.

    with ForkServer({"LD_PRELOAD": "libasan.so"}, folder) as server:
        outcome = server.run(["tests/ops/test_rotary.py"], library, seeds=(0, 1))

A run then costs what its tests cost. A new interpreter takes seconds to import torch, many under
AddressSanitizer, and pytest one more to load its plugins. Run as a program, this file is the
server: a request a line on its standard input, an answer a line on its standard output, as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO

import pytest

from tests.helpers.sources import ROOT

RUN_SECONDS = 240.0
_QUIET = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
# What the tests of ops need; the second is what torch imports at the first gradient.
_PRELOADED = ("roots.ops", "torch.fx.experimental.symbolic_shapes")
_M_PERTURB = -6  # of mallopt: fill what malloc gives with the complement of a byte


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended: pytest's exit code, minus a signal, or None for a run too long."""

    code: int | None
    output: str

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.code == 0

    @property
    def failed(self) -> bool:
        """Whether a test failed, or ended the process, or hung; not: none was found or loaded."""
        if self.code is None or self.code < 0:
            return True
        sanitizer = "Sanitizer" in self.output or "runtime error:" in self.output
        missing = "kernels are missing" in self.output
        return (self.code == 1 or (self.code > 0 and sanitizer)) and not missing


class ForkServer:
    """A server that starts with the first run; `environment` is added to that of this process.

    preloaded: the modules that it imports before it forks
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        folder: Path,
        preloaded: Sequence[str] = _PRELOADED,
    ) -> None:
        self._environment = {**os.environ, **environment}
        self._preloaded = preloaded
        self._log = folder / "server.txt"
        self._output = folder / "output.txt"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.communicate()

    def run(
        self,
        arguments: Sequence[str],
        library: Path,
        seeds: Sequence[int],
        seconds: float = RUN_SECONDS,
    ) -> Outcome:
        """Run pytest with the kernels of a folder, seed after seed, until one fails a test."""
        if self._process is None:
            self._process = self._start()
        self._output.unlink(missing_ok=True)
        request = {
            "arguments": list(arguments),
            "variables": [
                {"ROOTS_KERNELS": str(library), "ROOTS_SIMULATOR_SEED": str(seed)} for seed in seeds
            ],
            "output": str(self._output),
            "seconds": seconds,
        }
        _send(_pipe(self._process.stdin), request)
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(
                f"the server of the runs has ended:\n{self._log.read_text()[-3000:]}"
            )
        output = self._output.read_text(encoding="utf-8", errors="replace")
        return Outcome(json.loads(line), output)

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.simulator.fork_server", *self._preloaded],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )


def serve(preloaded: Sequence[str]) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the log
    for name in preloaded:
        importlib.import_module(name)
    warm = False
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if not warm:
            pytest.main([*_QUIET, "--collect-only", *request["arguments"]])
            gc.collect()
            gc.freeze()
            warm = True
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            _run(request)
        _send(answers, _wait(process, request["seconds"]))


def _run(request: dict[str, Any]) -> NoReturn:
    """In the fork: pytest with each set of variables, until it fails."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for ours, standard in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(ours, standard)
    ctypes.CDLL(None).mallopt(_M_PERTURB, 1)  # what a kernel forgets to write is no old result
    code = 0
    for variables in request["variables"]:
        os.environ.update(variables)
        code = int(pytest.main([*_QUIET, *request["arguments"]]))
        if code != 0:
            break
    sys.stdout.flush()
    os._exit(code)


def _wait(process: int, seconds: float) -> int | None:
    """The exit code of a fork or minus its signal; None if it takes too long, which ends it."""
    ended = select.poll()
    handle = os.pidfd_open(process)
    ended.register(handle, select.POLLIN)
    in_time = bool(ended.poll(1000 * seconds))
    os.close(handle)
    if not in_time:
        os.killpg(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status if in_time else None


def _send(pipe: TextIO, message: Any) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


def _pipe(end: Any) -> Any:
    assert end is not None
    return end


if __name__ == "__main__":
    serve(sys.argv[1:])
