"""Data that is cut short while a run trains: what was trained is saved, and one line says why."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

from roots.config import RunConfig
from roots.data.batch import Batch
from roots.data.loader import StepReader
from roots.errors import ExitCode, RootsError
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import run

BAD_STEP = 3


def run_over_cut_data(
    rank: int, world_size: int, config: RunConfig, path: Path
) -> tuple[tuple[str, ...], int, bool]:
    """Lines, exit code and whether this rank tells them; the last rank cuts `path`."""
    whole = StepReader.read

    def read(self: StepReader, step: int) -> list[Batch]:
        if rank == world_size - 1 and step == BAD_STEP:
            os.truncate(path, 2)
        return whole(self, step)

    try:
        with patch.object(StepReader, "read", read):
            run(rank, world_size, config)
    except RootsError as error:
        return error.lines, error.exit_code, error.speaks
    raise AssertionError("the run ended as if nothing had happened")


def test_run_ends_with_a_line_and_goes_on_once_the_data_is_back(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data")
    path = Path(f"{prefix}.bin")
    content = path.read_bytes()
    config = small_config(
        prefix, tmp_path, training={"steps": 5}, data={"cache_directory": str(tmp_path / "cache")}
    )
    first, second = run_distributed(run_over_cut_data, 2, config, path)
    lines, code, _ = first
    assert lines[0].startswith(f"{path}, sample ")
    assert f": has 2 bytes left of the {len(content):,} it had when opened; " in lines[0]
    assert code == ExitCode.BAD_INPUT
    assert second[:2] == first[:2]
    assert (first[2], second[2]) == (True, False)
    saved = [each.name for each in (config.run_directory / "checkpoints").glob("step_*")]
    assert saved == [f"step_{BAD_STEP:08d}"]
    path.write_bytes(content)
    assert set(run_distributed(run, 2, config)) == {ExitCode.DONE}
