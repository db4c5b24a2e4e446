"""Optimizer state on NVMe, by DeepSpeed's own reads and writes: saved whole, and gone on from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from roots.checkpoint import folders
from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.device import extensions_folder, launch_environment
from roots.errors import ExitCode
from roots.training.assemble import assemble, start_process
from roots.training.engine import deepspeed_json
from roots.training.local_copies import LocalCopies
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import PEAK, differences, run, state_of

STEPS, HALF = 4, 2
# What is smaller than a mebibyte stays in memory.
PARTS = 300_000
CHECKPOINT: dict[str, dict[str, Any]] = {
    "waits": {"asynchronous": False, "every_steps": 1, "keep_last": STEPS},
    "beside": {"every_steps": 1, "keep_last": STEPS},
    "local": {"local_every_steps": HALF},
}


def config_of(folder: Path, name: str, precision: str, **parallel: Any) -> RunConfig:
    checkpoint = {"every_steps": 0, **CHECKPOINT.get(name, {})}
    return small_config(
        folder / "data",
        folder,
        run={"name": name},
        model={"hidden_size": 128, "num_layers": 4},
        training={"steps": STEPS, "precision": precision},
        optimizer={"implementation": "torch"},
        parallel=parallel,
        checkpoint={**checkpoint, "local_directory": str(folder / "local")},
    )


def checkpoint_of(config: RunConfig, step: int = STEPS) -> Path:
    return config.run_directory / "checkpoints" / folders.step_name(step)


def all_ways(rank: int, world_size: int, folder: Path, precision: str) -> dict[str, list[str]]:
    """What differs, after each way to go on in the middle, from a run that never stopped."""
    on_disk = {
        "zero_stage": 3,
        "offload_optimizer": "nvme",
        "nvme_path": str(folder / "disk"),
    }
    compose = deepspeed_json.deepspeed_config

    def in_parts(*arguments: Any) -> dict[str, Any]:
        tree = compose(*arguments)
        tree["zero_optimization"]["sub_group_size"] = PARTS
        return tree

    whole = config_of(folder, "whole", precision, zero_stage=3, offload_optimizer="cpu")
    found: dict[str, list[str]] = {}

    def compare(name: str, config: RunConfig) -> None:
        found[name] = differences(state_of(checkpoint_of(whole)), state_of(checkpoint_of(config)))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("roots.training.engine.step.deepspeed_config", in_parts)
        assert run(rank, world_size, whole) == ExitCode.DONE
        for name in ("waits", "beside"):
            config = config_of(folder, name, precision, **on_disk)
            assert run(rank, world_size, config, stop_after=HALF) == ExitCode.INTERRUPTED
            assert run(rank, world_size, config) == ExitCode.DONE
            compare(name, config)
        half = checkpoint_of(config_of(folder, "waits", precision), HALF)
        moved = config_of(folder, "moved", precision, zero_stage=1)
        checkpoint = moved.checkpoint.model_copy(update={"resume": str(half)})
        moved = moved.model_copy(update={"checkpoint": checkpoint})
        found["moved"] = differences(state_of(half), state_of(taken_over(moved)))
        local = config_of(folder, "local", precision, **on_disk)
        patched.setattr(LocalCopies, "close", _kept(LocalCopies.close))
        assert run(rank, world_size, local, stop_after=HALF + 1) == ExitCode.INTERRUPTED
        shutil.rmtree(local.run_directory / "checkpoints" / folders.step_name(HALF + 1))
        (local.run_directory / "checkpoints" / "latest").unlink()
        assert run(rank, world_size, local) == ExitCode.DONE
        compare("local", local)
    return found


def taken_over(config: RunConfig) -> Path:
    """What a run that goes on from elsewhere has, saved before its first step."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    with ExitStack() as stack, patch("roots.training.assemble.device_peak", return_value=PEAK):
        started = assemble(config, plan_batch(config, 1), device, stack)
        return started.checkpointer.save(started.engine, started.start)


def _kept(close: Callable[..., None]) -> Callable[..., None]:
    """Without the end of a run, which removes its copies."""
    return lambda copies, done: close(copies, done=False)


@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_run_with_its_optimizer_on_nvme_goes_on_as_if_it_had_not_stopped(
    precision: str, tmp_path: Path
) -> None:
    """From saves of both kinds, from copies on the machine, and, moved, without NVMe on ZeRO 1."""
    built = (extensions_folder() / "async_io" / "async_io.so").exists()
    if not built and not os.environ.get("ROOTS_NVME"):
        pytest.skip("DeepSpeed's async_io is not compiled; ROOTS_NVME=1 does so, in two minutes")
    write_dataset(tmp_path / "data")
    (found,) = run_distributed(all_ways, 1, tmp_path, precision, timeout_seconds=600.0)
    ways = ("waits", "beside", "moved", "local")
    assert found == {name: [] for name in ways}
    files = sorted((tmp_path / "waits").rglob("step_00000002/optimizer/*"))
    assert len(files) > 2
