"""Copies of the tree with a bug in them, and runs of the tests that should find it.

A copy is made of links to the files of the checkout, which stays as it is; the file that a bug
changes is written anew. Tests run in a fork of a process that has imported what takes seconds but
nothing of ROOTS: `roots` and `tests` there are those of the copy. So they are in the ranks that a
check starts, which are forked from that fork in turn (see `_fork_instead`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import shlex
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path

from tests.planted import PlantedBug

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("roots", "tests", "configs", "launch", "csrc", "pyproject.toml", "README.md", "setup.py")
_LEFT_OUT = shutil.ignore_patterns("*.partial", "runs", "build")
# Imported before the first fork; what of them is not installed is left to the tests that need it.
_PRELOADED = (
    "torch._dynamo",
    "deepspeed",
    "deepspeed.runtime.pipe.dualpipev",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.moe.layer",
    "hypothesis",
    "pytest",
    "pydantic",
    "safetensors.torch",
    "tokenizers",
    "typer.testing",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
)
_RUN_SECONDS = 300.0
_PR_SET_CHILD_SUBREAPER = 36  # of prctl, in linux/prctl.h
_QUIET = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist")


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended: pytest's exit code, minus a signal, or None for a run too long.

    seconds: of processor time, of the run and of all that it has waited for.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether there were tests and all passed."""
        return self.code == 0

    @property
    def failed(self) -> bool:
        """Whether a test failed, or ended the process; not: none was found, or it took too long.

        A rank that hangs fails a test by itself. A busy machine alone must catch no bug.
        """
        return self.code is not None and (self.code < 0 or self.code == 1)


def preload() -> None:
    """Import what forks need; nothing of ROOTS."""
    for name in _PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    loaded = [name for name in sys.modules if name.split(".")[0] == "roots"]
    assert not loaded, f"{loaded[0]} is loaded, and would be in every fork"


@contextlib.contextmanager
def planted(bug: PlantedBug | None) -> Iterator[Path]:
    """A copy of the tree with the bug, or as it is; removed behind the block."""
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        copy = Path(name)
        for each in _COPIED:
            if (ROOT / each).is_dir():
                shutil.copytree(
                    ROOT / each, copy / each, copy_function=_link, ignore=_LEFT_OUT, symlinks=True
                )
            else:
                _link(ROOT / each, copy / each)
        if bug is not None:
            path = copy / "roots" / bug.file
            text = path.read_text(encoding="utf-8")
            assert text.count(bug.old) == 1, f"{bug.old!r} is not once in roots/{bug.file}"
            path.unlink()
            path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
        yield copy


def run_checks(copy: Path, checks: Sequence[str]) -> Outcome:
    """Run the tests that the checks name, of a copy, until one fails."""
    output = copy / "output.txt"
    before = os.times()
    # What a check leaves behind, its fork server with the ranks, comes to this process to be ended.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        os.setsid()
        _run_in_fork(copy, checks, output)
    ended, _, _ = select.select([os.pidfd_open(child)], [], [], _RUN_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if ended else None
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-child, 0):
            pass
    after = os.times()
    seconds = after.children_user + after.children_system
    seconds -= before.children_user + before.children_system
    text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
    return Outcome(status, text, seconds)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _run_in_fork(copy: Path, checks: Sequence[str], output: Path) -> None:
    code = 3
    try:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        _move_into(copy)
        import pytest

        for check in checks:
            code = int(pytest.main([*_QUIET, *shlex.split(check)]))
            if code != 0:
                break
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _move_into(copy: Path) -> None:
    """Let this process, and all that it starts, find `roots` and `tests` in the copy."""
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), OMP_NUM_THREADS="1")
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    here = {"", str(ROOT), str(copy)}
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in here)]
    # The processes of multiprocessing load again what is called so, which is not theirs to know.
    sys.modules["__main__"] = types.ModuleType("__main__")
    util.spawnv_passfds = _fork_instead  # type: ignore[attr-defined]


def _fork_instead(path: str, arguments: Sequence[str], kept: Sequence[int]) -> int:
    """What multiprocessing starts its fork server by: here a fork, which has torch loaded."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # Not closed but put out of use: the objects that own them are here too, and when they go
        # they close these numbers, which by then would be other files.
        nothing = os.open(os.devnull, os.O_RDWR)
        for each in map(int, os.listdir("/proc/self/fd")):
            if each > 2 and each not in kept:
                with contextlib.suppress(OSError):
                    os.fstat(each)
                    os.dup2(nothing, each)
        program = arguments[arguments.index("-c") + 1]
        exec(program, {"__name__": "__main__"})
        code = 0
    finally:
        os._exit(code)
