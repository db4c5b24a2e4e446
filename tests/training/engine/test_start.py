"""Starting DeepSpeed loads no compiler, and leaves the environment as it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from roots.config import RunConfig
from roots.training.engine.start import import_muon_uncompiled
from roots.verify.curve import train_curve
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset

INDUCTOR = "torch._inductor.compile_fx"
MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def loaded_by_training(rank: int, world_size: int, config: RunConfig) -> tuple[bool, bool]:
    train_curve(config)
    return MUON in sys.modules, INDUCTOR in sys.modules


def test_training_asks_for_muon_and_loads_no_compiler(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"), tmp_path, training={"steps": 2})
    assert run_distributed(loaded_by_training, 1, config) == [(True, False)]


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_environment_is_as_before(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    if before is not None:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", before)
    import_muon_uncompiled()
    assert os.environ.get("TORCHDYNAMO_DISABLE") == before
