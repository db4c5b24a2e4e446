"""A real training of which a rank is killed: the other one names it, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from roots.cli.main import main
from roots.config.load import dump_config
from roots.device import LaunchEnvironment, set_environment
from roots.errors import ExitCode
from roots.training import assemble, loop
from tests.helpers.faults import run_ranks
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import PEAK


def _train(place: LaunchEnvironment, folder: Path, step: int | None) -> None:
    """`roots train`, in which rank 1 is killed in a step, or where it builds its model."""
    set_environment({name.upper(): str(value) for name, value in asdict(place).items()})
    one_step: Callable[..., Any] = loop._one_step
    build_engine = assemble.build_engine

    def die() -> None:
        (folder / "fault").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def killed(run: loop.Run, point: Any, batches: Any) -> Any:
        if place.rank == 1 and point.step + 1 == step:
            die()
        return one_step(run, point, batches)

    def killed_early(*arguments: Any, **others: Any) -> Any:
        if place.rank == 1 and step is None:
            die()
        return build_engine(*arguments, **others)

    # Measuring the processor would take longer than the run.
    with (
        patch("roots.training.assemble.device_peak", return_value=PEAK),
        patch("roots.training.loop._one_step", killed),
        patch("roots.training.assemble.build_engine", killed_early),
    ):
        main(["train", str(folder / "run.yaml")])


@pytest.mark.distributed
def test_a_killed_rank_of_a_training_is_named_with_its_last_step(tmp_path: Path) -> None:
    config = small_config(
        write_dataset(tmp_path / "data"),
        tmp_path,
        checkpoint={"every_steps": 2, "asynchronous": False},
    )
    (tmp_path / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    ended = run_ranks(_train, 2, tmp_path, tmp_path, 4)
    assert [each.code for each in ended] == [ExitCode.LOST, -signal.SIGKILL]
    said = [line for line in ended[0].stderr.splitlines() if "error" in line]
    assert len(said) == 1
    host = os.uname().nodename
    start = f"roots: error: rank 1 on host {host}: has died, last step 3; it is missing in "
    assert said[0].startswith(start)
    assert f"; the ranks' stacks are in {config.run_directory}/stacks; start again" in said[0]
    assert ended[0].seconds < 10
    assert "in train_step" in (config.run_directory / "stacks" / "rank_0.txt").read_text("utf-8")
    assert (config.run_directory / "checkpoints" / "step_00000002").is_dir()
    assert not (config.run_directory / "run.lock").exists()
    assert _ends(config.run_directory) == (("begin", True), ("end", 7))


@pytest.mark.distributed
def test_the_ledger_has_the_code_of_a_run_that_loses_a_rank_before_it_trains(
    tmp_path: Path,
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), tmp_path)
    (tmp_path / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    ended = run_ranks(_train, 2, tmp_path, tmp_path, None)
    assert [each.code for each in ended] == [ExitCode.LOST, -signal.SIGKILL]
    assert "roots: error: rank 1 on host " in ended[0].stderr
    assert _ends(config.run_directory) == (("begin", False), ("end", 7))


def _ends(folder: Path) -> tuple[tuple[str, bool], tuple[str, int]]:
    """Whether training began, and the last line of the ledger with its code."""
    text = (folder / "ledger.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    begun = any(line["event"] == "begin" for line in lines)
    return ("begin", begun), (lines[-1]["event"], lines[-1]["code"])
