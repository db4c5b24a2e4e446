"""A disk that is full while a run trains: lines that say so, and no more lost than must be."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest

from roots.config import RunConfig
from roots.errors import ExitCode, RootsError
from roots.training.callbacks.callback import Callback
from roots.training.callbacks.metrics import StepRecord
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import run


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("full") / "data")


class Warnings(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Away(Callback):
    """A folder that a file stands for after step 3, and that is back after step 5."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.aside = folder, folder.with_name("aside")

    def on_step_end(self, record: StepRecord) -> None:
        if record.step == 3:
            self.folder.rename(self.aside)
            self.folder.touch()
        if record.step == 5:
            self.folder.unlink()
            self.aside.rename(self.folder)


def end_of_run(
    rank: int,
    world_size: int,
    config: RunConfig,
    largest_file: int | None,
    watcher: Callback | None = None,
) -> tuple[int, tuple[str, ...], list[str]]:
    """Exit code, lines and warnings of a run; the last rank has `largest_file` bytes a file."""
    warnings = Warnings()
    logging.getLogger("roots").addHandler(warnings)
    if largest_file is not None and rank == world_size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        return int(run(rank, world_size, config, watcher=watcher)), (), warnings.lines
    except RootsError as error:
        return int(error.exit_code), error.lines, warnings.lines


def test_saves_that_find_no_room_give_their_space_back_and_the_last_tells_the_code(
    prefix: Path, tmp_path: Path
) -> None:
    """Though one rank alone has no room: all know, and train on."""
    config = small_config(prefix, tmp_path, checkpoint={"every_steps": 2})
    first, second = run_distributed(end_of_run, 2, config, 60_000)
    code, (line,), (warning,) = first
    assert second == (code, (line,), [])
    root = config.run_directory / "checkpoints"
    for step, text in ((2, warning), (4, f"not saved, training goes on: {line}")):
        start = f"not saved, training goes on: checkpoint='{root}/step_0000000{step}': could not "
        assert text == (
            f"{start}be written (File too large); raise the limit on the size of a file (ulimit "
            "-f); the checkpoints before it are untouched"
        )
        assert not (root / f"step_0000000{step}").exists()
    assert code == ExitCode.NOT_SAVED
    assert len((config.run_directory / "metrics.jsonl").read_text().splitlines()) == 4


def test_records_that_find_no_room_are_a_warning(prefix: Path, tmp_path: Path) -> None:
    config = small_config(prefix, tmp_path)
    config.run_directory.mkdir()
    metrics = config.run_directory / "metrics.jsonl"
    metrics.symlink_to("/dev/full")
    ((code, lines, warnings),) = run_distributed(end_of_run, 1, config, None)
    assert (code, lines) == (0, ())
    assert warnings == [
        f"{metrics}: cannot be written (No space left on device); training goes on, and records "
        "wait in memory until it can be; free some disk space",
        f"{metrics}: 4 records were not written",
    ]
    saved = [path.name for path in (config.run_directory / "checkpoints").glob("step_*")]
    assert saved == ["step_00000004"]


def test_place_that_cannot_be_used_for_a_while_is_one_line_a_save(
    prefix: Path, tmp_path: Path
) -> None:
    wishes = {"every_steps": 1, "keep_last": 0, "asynchronous": False}
    config = small_config(prefix, tmp_path, training={"steps": 6}, checkpoint=wishes)
    root = config.run_directory / "checkpoints"
    ((code, lines, warnings),) = run_distributed(end_of_run, 1, config, None, Away(root))
    assert (code, lines) == (0, ())
    assert warnings == [
        f"not saved, training goes on: checkpoint='{root}/step_0000000{step}': could not be "
        "written (File exists); check the path and its disk; the checkpoints before it are "
        "untouched"
        for step in (3, 4)
    ]
    saved = sorted(path.name for path in root.glob("step_*"))
    assert saved == [f"step_0000000{step}" for step in (1, 2, 5, 6)]
