"""Runs in forks: what they get, how they end, and that one does not reach the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulator.fork_server import ForkServer, Outcome

CASES = """
import os
import signal
import threading

def test_passes():
    assert os.environ["ROOTS_KERNELS"] == "/kernels" and os.environ["GIVEN"] == "first"

def test_fails_with_seed_2():
    print("seed", os.environ["ROOTS_SIMULATOR_SEED"])
    assert os.environ["ROOTS_SIMULATOR_SEED"] != "2"

def test_dies():
    os.kill(os.getpid(), signal.SIGTERM)

def test_hangs():
    threading.Event().wait()

def test_leaves_a_mark():
    assert "MARK" not in os.environ
    os.environ["MARK"] = "here"

def test_has_no_kernels():
    raise RuntimeError("the simulator kernels are missing: no compiler.")
"""

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """run("passes", seeds, seconds): run one of the cases."""
    folder = tmp_path_factory.mktemp("server")
    cases = folder / "test_cases.py"
    cases.write_text(CASES, encoding="utf-8")
    with ForkServer({"GIVEN": "first"}, folder, preloaded=()) as server:

        def run(name: str, seeds: tuple[int, ...] = (0,), seconds: float = 60.0) -> Outcome:
            check = [f"{cases}::test_{name}", "-p", "no:anyio", "-p", "no:hypothesispytest"]
            return server.run(check, Path("/kernels"), seeds, seconds)

        yield run


def test_run_that_passes(run: Run) -> None:
    outcome = run("passes", seeds=(0, 1))
    assert outcome.passed, outcome.output
    assert not outcome.failed
    assert outcome.output.count("1 passed") == 2


def test_first_seed_that_fails_ends_a_run(run: Run) -> None:
    outcome = run("fails_with_seed_2", seeds=(1, 2, 3))
    assert (outcome.code, outcome.failed, outcome.passed) == (1, True, False)
    assert "seed 2" in outcome.output
    assert outcome.output.count("1 passed") == outcome.output.count("1 failed") == 1


def test_run_that_dies_has_failed(run: Run) -> None:
    outcome = run("dies")
    assert (outcome.code, outcome.failed) == (-15, True)


def test_run_that_takes_too_long_is_ended_and_has_failed(run: Run) -> None:
    outcome = run("hangs", seconds=3.0)
    assert (outcome.code, outcome.failed) == (None, True)
    assert run("passes").passed


def test_run_leaves_nothing_to_the_next(run: Run) -> None:
    assert run("leaves_a_mark").passed
    assert run("leaves_a_mark").passed


@pytest.mark.parametrize("name", ["is_not_there", "has_no_kernels"])
def test_run_that_tested_nothing_has_neither_passed_nor_failed(run: Run, name: str) -> None:
    outcome = run(name)
    assert (outcome.passed, outcome.failed) == (False, False), outcome
