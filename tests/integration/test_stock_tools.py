"""DeepSpeed's own tools work on what ROOTS saves: ds_to_universal and zero_to_fp32, unmodified."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.checkpoint.folders import step_name
from roots.checkpoint.weights import WeightStore
from roots.config import RunConfig
from tests.helpers.command import run_python
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import run

STEPS = 2
# fp16 weights are the fp32 masters, rounded.
HALF = {"rtol": 2.0**-10, "atol": 2.0**-20}

LAYOUTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "zero1": (2, "fp16", {"zero_stage": 1}),
    "zero2": (2, "fp16", {"zero_stage": 2}),
    "zero3": (2, "fp16", {"zero_stage": 3}),
    "zero1-bf16": (2, "bf16", {"zero_stage": 1}),
    "zero1-tp2": (2, "fp16", {"tensor": 2, "zero_stage": 1}),
    "zero2-tp2": (2, "fp16", {"tensor": 2, "zero_stage": 2}),
    "zero1-pp2": (2, "fp16", {"pipeline": 2, "zero_stage": 1}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """The config of a finished run for every layout."""
    folder = tmp_path_factory.mktemp("stock")
    prefix = write_dataset(folder / "data")
    configs = {}
    for name, (world_size, precision, parallel) in LAYOUTS.items():
        configs[name] = small_config(
            prefix,
            folder,
            run={"name": name},
            parallel=parallel,
            model={"num_kv_heads": 2, "activation": "swiglu"},
            training={"steps": STEPS, "precision": precision},
            loss_scale={"initial_power": 8},
            checkpoint={"deepspeed_files": True},
        )
        run_distributed(run, world_size, configs[name])
    return configs


def call(name: str, *command: str | Path) -> None:
    """Run Python with `command`, anew for the first layout and in a fork for the others."""
    if name == next(iter(LAYOUTS)):
        words = [sys.executable, *map(str, command)]
        result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    else:
        result = run_python(*command)
    assert result.returncode == 0, result.stdout + result.stderr


def global_name(name: str, layers: int = 4) -> str:
    """Name by which ROOTS stores what DeepSpeed's pipeline calls by number of layer."""
    name = name.replace("tied_modules.embedding.", "embedding.")
    if match := re.match(r"(\d+)\.(.*)", name):
        number, rest = int(match[1]), match[2]
        return f"layers.{number - 1}.{rest}" if number <= layers else f"final_norm.{rest}"
    return name


@pytest.mark.parametrize("name", LAYOUTS)
def test_ds_to_universal_gives_the_global_weights(
    name: str, checkpoints: dict[str, RunConfig], tmp_path: Path
) -> None:
    source = checkpoints[name].run_directory / "checkpoints" / step_name(STEPS)
    tool = ["-m", "deepspeed.checkpoint.ds_to_universal"]
    folders = ["--input_folder", source, "--output_folder", tmp_path]
    call(name, *tool, *folders, "--num_extract_workers", "1", "--num_merge_workers", "1")
    found = {path.parent.name: path for path in tmp_path.glob("zero/*/fp32.pt")}
    store = WeightStore(source)
    assert {global_name(name) for name in found} == set(store.tensors)
    for name, path in found.items():
        tree = torch.load(path, weights_only=False)
        master = tree["param"] if isinstance(tree, dict) else tree
        whole = whole_tensor(store, global_name(name))
        torch.testing.assert_close(master.view(whole.shape).to(whole.dtype), whole, **HALF)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero1-bf16"])
def test_zero_to_fp32_gives_the_weights(
    name: str, checkpoints: dict[str, RunConfig], tmp_path: Path
) -> None:
    """The copy of the tool that lies beside the checkpoints, finding the step by `latest`."""
    root = checkpoints[name].run_directory / "checkpoints"
    call(name, root / "zero_to_fp32.py", root, tmp_path, "--safe_serialization")
    from safetensors.torch import load_file

    masters = load_file(tmp_path / "model.safetensors")
    store = WeightStore(root / step_name(STEPS))
    assert masters.keys() == store.tensors.keys()
    for tensor_name, master in masters.items():
        whole = whole_tensor(store, tensor_name)
        torch.testing.assert_close(master.to(whole.dtype), whole, **HALF)


def whole_tensor(store: WeightStore, name: str) -> torch.Tensor:
    from roots.parallel.shard import replicated

    return store.read(replicated(name, store.tensors[name].shape))
