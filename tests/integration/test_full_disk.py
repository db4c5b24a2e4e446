"""A disk that is full while a run trains: one line, and no more lost than must be."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from roots.config import RunConfig
from roots.errors import RootsError
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import run


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("full") / "data")


def lines_of_run(
    rank: int, world_size: int, config: RunConfig, largest_file: int | None
) -> tuple[str, ...]:
    """The lines with which a run ends in which no file may have more than `largest_file` bytes."""
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        run(rank, world_size, config)
    except RootsError as error:
        return error.lines
    return ()


def test_save_that_finds_no_room_gives_its_space_back(prefix: Path, tmp_path: Path) -> None:
    config = small_config(prefix, tmp_path, checkpoint={"every_steps": 2})
    ((line,),) = run_distributed(lines_of_run, 1, config, 60_000)
    root = config.run_directory / "checkpoints"
    assert line.startswith(f"checkpoint='{root}/step_00000002': could not be written (")
    assert re.search(r"; [\d,]+ bytes are free; free some disk space; ", line)
    assert not (root / "step_00000002").exists()
    assert len((config.run_directory / "metrics.jsonl").read_text().splitlines()) == 2


def test_records_that_find_no_room_end_the_run_after_a_checkpoint(
    prefix: Path, tmp_path: Path
) -> None:
    config = small_config(prefix, tmp_path)
    config.run_directory.mkdir()
    metrics = config.run_directory / "metrics.jsonl"
    metrics.symlink_to("/dev/full")
    ((line,),) = run_distributed(lines_of_run, 1, config, None)
    assert line.startswith(f"{metrics}: cannot be written (No space left on device): it needs ")
    saved = [path.name for path in (config.run_directory / "checkpoints").glob("step_*")]
    assert saved == ["step_00000001"]
