"""Checkpoints as a run leaves them, with hardly anything inside."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from roots.checkpoint import folders, manifest
from roots.config import RunConfig, dump_config
from roots.data.record import DataRecord

STATE_NAME = f"{manifest.OPTIMIZER_FOLDER}/rank_00000.safetensors"
WEIGHTS_NAME = "weights/pipeline_000_tensor_000.safetensors"


def save_checkpoint(
    config: RunConfig,
    step: int,
    *,
    layout: manifest.Layout,
    loss: float | None = None,
    data: DataRecord | None = None,
    saved: int | None = None,
) -> Path:
    """A finished checkpoint of `config` after `step`: a config, two tensors, a training state.

    Without `saved` as a ROOTS left it that did not write the time.
    """
    folder = config.run_directory / folders.CHECKPOINTS_FOLDER / folders.step_name(step)
    for name in (manifest.WEIGHTS_FOLDER, manifest.OPTIMIZER_FOLDER):
        (folder / name).mkdir(parents=True)
    (folder / manifest.CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    save_file({"step": torch.tensor(step)}, folder / STATE_NAME)
    tensors = {"matrix": torch.ones(6, 3), "norm": torch.ones(7)}
    shards = {
        name: {"shape": list(tensor.shape), "dim": None, "intervals": []}
        for name, tensor in tensors.items()
    }
    save_file(tensors, folder / WEIGHTS_NAME, {"shards": json.dumps(shards)})
    files = manifest.describe_files(folder, [manifest.CONFIG_NAME, STATE_NAME, WEIGHTS_NAME])
    samples = step * config.training.global_batch_size
    sealed = manifest.Manifest(step, samples, layout, files, loss, {}, data=data, saved=saved)
    manifest.write_manifest(folder, sealed)
    folders.point_latest(folder.parent, folder)
    return folder


def flip_bit(path: Path) -> None:
    """Damage the middle of a file, which keeps its length."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
