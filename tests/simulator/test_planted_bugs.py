"""Every planted bug makes the tests of its op fail in the simulator, and only the bug does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roots.lock import file_lock
from roots.ops.library.toolchain import Toolchain
from tests.ops import sanitized
from tests.simulator.conftest import CSRC, need_toolchain
from tests.simulator.fork_server import ForkServer, Outcome
from tests.simulator.planted import PlantedBug
from tests.simulator.planting import BUILD_SECONDS, PLACE, Folders, Planter, start_server

FILES = sorted(path.stem for path in (Path(__file__).parent / "planted").glob("[a-z]*.py"))
BUGS: list[PlantedBug] = [
    bug for stem in FILES for bug in importlib.import_module(f"tests.simulator.planted.{stem}").BUGS
]

Run = Callable[[Path, str, tuple[int, ...], bool], Outcome]
Plant = Callable[[bool], Planter]


@pytest.fixture(scope="module")
def tools() -> Toolchain:
    return need_toolchain()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same in all its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "planted-shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def planter(tools: Toolchain, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Of plain or of sanitized libraries, each built at its first use."""

    @functools.cache
    def planter(sanitize: bool) -> Planter:
        common = shared / ("sanitized" if sanitize else "plain")
        common.mkdir(exist_ok=True)
        folders = Folders(common, tmp_path_factory.mktemp("planted"))
        return Planter(tools, folders, sanitize=sanitize)

    return planter


@pytest.fixture(scope="module")
def run(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a check with the library of a folder, the sanitized ones under their own server."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def server(sanitize: bool) -> ForkServer:
            folder = tmp_path_factory.mktemp("server")
            return stack.enter_context(start_server(tools, folder, sanitize=sanitize))

        yield lambda library, check, seeds, sanitize: server(sanitize).run(
            shlex.split(check), library, seeds
        )


@pytest.fixture(scope="module")
def unchanged(planter: Plant, run: Run, shared: Path) -> Callable[[PlantedBug], Outcome]:
    """The outcome of a bug's check without the bug: one run for all that have the same check."""

    def outcome(bug: PlantedBug) -> Outcome:
        library = planter(bug.sanitize).unchanged
        key = hashlib.sha256(repr((bug.check, bug.seeds, bug.sanitize)).encode()).hexdigest()[:16]
        known = shared / f"{key}.json"
        with file_lock(known.with_suffix(".lock"), BUILD_SECONDS, PLACE):
            if not known.is_file():
                found = run(library, bug.check, bug.seeds, bug.sanitize)
                known.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
            return Outcome(**json.loads(known.read_text(encoding="utf-8")))

    return outcome


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.file}-{bug.name}".replace(" ", "_"))
def test_planted_bug_is_found(
    bug: PlantedBug, planter: Plant, unchanged: Callable[[PlantedBug], Outcome], run: Run
) -> None:
    before = unchanged(bug)
    assert before.passed, f"{bug.check} does not pass without the bug:\n{before.output[-3000:]}"
    library = planter(bug.sanitize).plant(bug)
    after = run(library, bug.check, bug.seeds, bug.sanitize)
    assert after.failed, f"exit code {after.code} with the bug:\n{after.output[-3000:]}"


@pytest.mark.parametrize("op", sanitized.CASES)
def test_no_access_out_of_bounds_and_nothing_undefined(op: str, planter: Plant, run: Run) -> None:
    """With AddressSanitizer and UndefinedBehaviorSanitizer, without any bug."""
    expression = sanitized.of_op(op, "simulator")
    check = f"tests/ops/test_{op}.py -k '{expression}'"
    outcome = run(planter(True).unchanged, check, (3,), True)
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
