"""A loaded model computes as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from roots.device import Device
from roots.generation import load
from roots.models.options import BuildOptions
from tests.helpers.runs import small_config


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)]
)
def test_conventions_of_the_training_are_kept(
    separate: bool,
    reset: bool,
    precision: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What documents mean, and the dtype; fp16 becomes fp32 where it would be slow."""
    data = {"separate_documents": separate, "reset_positions": reset}
    config = small_config(tmp_path, tmp_path, data=data, training={"precision": precision})
    seen: list[BuildOptions] = []
    build = load.build_model

    def built(*arguments: Any, options: BuildOptions) -> Any:
        seen.append(options)
        return build(*arguments, options=options)

    monkeypatch.setattr(load, "build_model", built)
    monkeypatch.setattr(load, "resolve_checkpoint", lambda path: path)
    monkeypatch.setattr(load, "check_model", lambda path: None)
    monkeypatch.setattr(load, "read_config", lambda path: config)
    monkeypatch.setattr(load, "load_model_weights", lambda path, module: None)
    loaded = load.load_model(tmp_path, Device("cpu", 0))
    (options,) = seen
    assert (options.separate_documents, options.reset_positions) == (separate, reset)
    assert options.dtype == dtype
    assert not loaded.network.training
