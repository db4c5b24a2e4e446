"""Every planted bug makes the tests of its op fail in the simulator, and only the bug does."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from roots.ops.library.toolchain import Toolchain
from tests.ops import sanitized
from tests.simulator.conftest import CSRC, need_toolchain
from tests.simulator.planted import PlantedBug
from tests.simulator.planting import Outcome, Planter, run_sanitized, run_tests

FILES = sorted(path.stem for path in (Path(__file__).parent / "planted").glob("[a-z]*.py"))
BUGS: list[PlantedBug] = [
    bug for stem in FILES for bug in importlib.import_module(f"tests.simulator.planted.{stem}").BUGS
]

Plant = Callable[[bool], Planter]
Unchanged = Callable[[PlantedBug], Outcome]


@pytest.fixture(scope="module")
def tools() -> Toolchain:
    return need_toolchain()


@pytest.fixture(scope="module")
def planter(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Of plain or of sanitized libraries, each built at its first use."""

    @functools.cache
    def planter(sanitize: bool) -> Planter:
        return Planter(tools, tmp_path_factory.mktemp("planted"), sanitize=sanitize)

    return planter


@pytest.fixture(scope="module")
def unchanged(planter: Plant, tools: Toolchain) -> Unchanged:
    """The outcome of a bug's check without the bug."""

    @functools.cache
    def run(check: str, seeds: tuple[int, ...], sanitize: bool) -> Outcome:
        return _run(planter(sanitize).unchanged, check, seeds, tools if sanitize else None)

    return lambda bug: run(bug.check, bug.seeds, bug.sanitize)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.file}-{bug.name}".replace(" ", "_"))
def test_planted_bug_is_found(
    bug: PlantedBug, planter: Plant, unchanged: Unchanged, tools: Toolchain
) -> None:
    before = unchanged(bug)
    assert before.passed, f"{bug.check} does not pass without the bug:\n{before.output[-3000:]}"
    library = planter(bug.sanitize).plant(bug)
    after = _run(library, bug.check, bug.seeds, tools if bug.sanitize else None)
    assert after.failed, f"exit code {after.code} with the bug:\n{after.output[-3000:]}"


@pytest.mark.parametrize("op", sanitized.CASES)
def test_no_access_out_of_bounds_and_nothing_undefined(
    op: str, planter: Plant, tools: Toolchain
) -> None:
    """With AddressSanitizer and UndefinedBehaviorSanitizer, without any bug."""
    expression = sanitized.of_op(op, "simulator")
    check = f"tests/ops/test_{op}.py -k '{expression}'"
    outcome = _run(planter(True).unchanged, check, (3,), tools)
    assert outcome.passed, outcome.output[-5000:]


def test_every_op_of_the_simulator_runs_sanitized() -> None:
    sources = {path.stem for path in (CSRC / "binding").glob("*.cpp")} - {"schemas"}
    assert sources == set(sanitized.CASES)


def test_planted_bugs_fit_the_sources() -> None:
    for bug in BUGS:
        text = (CSRC / "cuda" / bug.file).read_text(encoding="utf-8")
        assert text.count(bug.old) == 1, f"{bug.name}: {bug.old!r} is not once in {bug.file}"
        assert bug.new != bug.old
    assert len({(bug.file, bug.name) for bug in BUGS}) == len(BUGS)


def _run(library: Path, check: str, seeds: tuple[int, ...], sanitizer: Toolchain | None) -> Outcome:
    if sanitizer is None:
        return run_tests(library, check, seeds)
    return run_sanitized(library, check, seeds, sanitizer)
