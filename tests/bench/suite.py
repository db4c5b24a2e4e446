"""The processor time of the test suite, of this tree and of another commit, in one run.

    python -m tests.bench.suite [--against COMMIT] [--common] [--json FILE] [PYTEST ARGUMENTS]

Both sides run one after the other on the same machine, that of COMMIT in a worktree of its own with
this tree's compiled parts, which are built anew if their sources differ. Counted is user and system
time of every process that a side started, those that outlived their parents included. --common runs
only tests whose function both sides have, in whatever file it stands now. Without arguments pytest
gets `-n 2 --dist worksteal`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.helpers.sources import ROOT

_DEFAULT = ("-n", "2", "--dist", "worksteal")
# What the build makes, and what the two parts of it are made from.
_BUILT = ("roots/**/*.so", "roots/**/_C_*.json", "roots/**/_C_*.log")
_INDEX_SOURCES = ("csrc/data",)
_KERNEL_SOURCES = ("csrc", ":!csrc/data")
_SHOWN_FILES = 12
# Servers end by themselves when those who used them have.
_REAP_SECONDS = 60.0
# Of <linux/prctl.h>: orphans among the descendants become children of this process.
_PR_SET_CHILD_SUBREAPER = 36
_ONLY = """
import json, os

def pytest_collection_modifyitems(config, items):
    with open(os.environ["SUITE_ONLY"], encoding="utf-8") as file:
        only = set(json.load(file))
    named = lambda item: item.nodeid.split("::", 1)[1].split("[")[0]
    config.hook.pytest_deselected(items=[item for item in items if named(item) not in only])
    items[:] = [item for item in items if named(item) in only]
"""


@dataclass
class Side:
    """What one run of the suite cost; seconds of processors in `user` and `system`."""

    name: str
    user: float
    system: float
    wall: float
    code: int
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, float] = field(default_factory=dict)

    @property
    def processor(self) -> float:
        """Seconds of processor time."""
        return self.user + self.system


def main() -> int:
    """Run one or two sides, print what they cost and their ratio; the worse exit code."""
    options, words = _parser().parse_known_args()
    words = words or list(_DEFAULT)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="suite-") as name:
        folder = Path(name)
        if options.against is None:
            sides = [measure("this tree", ROOT, folder, words)]
        else:
            with checkout(options.against, folder / "tree") as tree:
                if options.common:
                    names = common(tree, ROOT, words)
                    (folder / "only.json").write_text(json.dumps(names), encoding="utf-8")
                sides = [
                    measure(options.against, tree, folder, words),
                    measure("this tree", ROOT, folder, words),
                ]
    for side in sides:
        report(side)
    if len(sides) == 2:
        print(f"processor time: {sides[1].processor / sides[0].processor:.3f} of {sides[0].name}'s")
    if options.json:
        options.json.write_text(json.dumps([asdict(side) for side in sides], indent=1) + "\n")
    return max(side.code for side in sides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.suite", description="The rest goes to pytest."
    )
    parser.add_argument("--against", metavar="COMMIT", help="run the suite of this commit first")
    parser.add_argument(
        "--common", action="store_true", help="only test functions that both sides have"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of `commit` with its compiled parts."""
    git = ("git", "-C", str(ROOT))
    subprocess.run([*git, "worktree", "add", "-q", "--detach", str(folder), commit], check=True)
    try:
        for path in (path for pattern in _BUILT for path in ROOT.glob(pattern)):
            shutil.copy2(path, folder / path.relative_to(ROOT))
        for sources, kernels in ((_INDEX_SOURCES, "none"), (_KERNEL_SOURCES, "cpu")):
            if subprocess.run([*git, "diff", "--quiet", commit, "--", *sources]).returncode:
                build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
                environment = {**os.environ, "ROOTS_BUILD": kernels}
                subprocess.run(build, cwd=folder, env=environment, check=True)
        yield folder
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=True)


def common(first: Path, second: Path, words: Sequence[str]) -> list[str]:
    """The test functions that pytest collects on both sides, without files and parameters."""
    return sorted(functions(first, words) & functions(second, words))


def functions(tree: Path, words: Sequence[str]) -> set[str]:
    """The test functions that pytest collects in `tree`, with the classes they stand in."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0"]
    command += ["-p", "no:cacheprovider", *_without_workers(words)]
    found = subprocess.run(
        command, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=True
    )
    tests = (line.split("::", 1)[1] for line in found.stdout.splitlines() if "::" in line)
    return {test.split("[")[0] for test in tests}


def measure(name: str, tree: Path, folder: Path, words: Sequence[str]) -> Side:
    """Run the suite of `tree` and count what it and all of its descendants took."""
    report_file = folder / "report.xml"
    environment = _environment(tree)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report_file}", *words]
    if (folder / "only.json").exists():
        (folder / "suite_only.py").write_text(_ONLY, encoding="utf-8")
        environment["SUITE_ONLY"] = str(folder / "only.json")
        environment["PYTHONPATH"] += os.pathsep + str(folder)
        command += ["-p", "suite_only"]
    print(f"== {name}: {' '.join(command)}", flush=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, cwd=tree, env=environment)
    code = _wait(process)
    wall = time.monotonic() - start
    _reap()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    side = Side(
        name, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, wall, code
    )
    if report_file.exists():
        side.counts, side.files = _read(report_file)
        report_file.unlink()
    return side


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def _without_workers(words: Sequence[str]) -> list[str]:
    """`words` without the default's options of pytest-xdist, which would lose the list of tests."""
    return [] if tuple(words) == _DEFAULT else list(words)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. Orphans are this process's children: who waits for their end waits for it."""
    while True:
        found, status = os.waitpid(-1, 0)
        if found == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode


def _reap() -> None:
    """Wait for what the suite left behind: only what is waited for is counted."""
    deadline = time.monotonic() + _REAP_SECONDS
    ended = {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    try:
        while True:
            found, _ = os.waitpid(-1, os.WNOHANG)
            left = deadline - time.monotonic()
            if found == 0 and (left <= 0 or signal.sigtimedwait(ended, left) is None):
                break
    except ChildProcessError:
        return
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    print("some processes of the suite have not ended and are not counted", file=sys.stderr)


def _read(report_file: Path) -> tuple[dict[str, int], dict[str, float]]:
    """How the tests ended, and the wall seconds of each file, as pytest reports them."""
    counts: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for case in ElementTree.parse(report_file).getroot().iter("testcase"):
        ends = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        counts[next((ends[child.tag] for child in case if child.tag in ends), "passed")] += 1
        files[case.get("classname", "")] += float(case.get("time", 0.0))
    return dict(counts), dict(files)


def report(side: Side) -> None:
    """Print the figures of one side and its slowest files."""
    ended = ", ".join(f"{count:,} {how}" for how, count in sorted(side.counts.items()))
    print(
        f"{side.name}: {side.processor:,.0f} s of processors ({side.user:,.0f} user, "
        f"{side.system:,.0f} system), {side.wall:,.0f} s on the clock; {ended}; exit {side.code}"
    )
    slowest = sorted(side.files.items(), key=lambda item: -item[1])[:_SHOWN_FILES]
    for name, seconds in slowest:
        print(f"  {seconds:7.1f} s  {name}")


if __name__ == "__main__":
    sys.exit(main())
