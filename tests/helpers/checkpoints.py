"""Checkpoints as a run leaves them, with hardly anything inside."""

from __future__ import annotations

from pathlib import Path

import torch

from roots.checkpoint import folders, manifest
from roots.config import RunConfig, dump_config

STATE_NAME = "mp_rank_00_model_states.pt"


def save_checkpoint(
    config: RunConfig, step: int, *, layout: manifest.Layout, loss: float | None = None
) -> Path:
    """A finished checkpoint of `config` after `step`, a config and a training state."""
    folder = config.run_directory / folders.CHECKPOINTS_FOLDER / folders.step_name(step)
    folder.mkdir(parents=True)
    (folder / manifest.CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    torch.save({"step": step}, folder / STATE_NAME)
    files = manifest.describe_files(folder, [manifest.CONFIG_NAME, STATE_NAME])
    samples = step * config.training.global_batch_size
    manifest.write_manifest(folder, manifest.Manifest(step, samples, layout, files, loss))
    folders.point_latest(folder.parent, folder)
    return folder


def flip_bit(path: Path) -> None:
    """Damage the middle of a file, which keeps its length."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
