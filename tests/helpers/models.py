"""Checkpoints of models with weights of their own, as training would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from roots.checkpoint import manifest
from roots.config import RunConfig, dump_config
from roots.models.build import build_model
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.shard import shard_of
from tests.helpers.runs import small_config
from tests.helpers.stored_weights import save_weights


def save_model(folder: Path, *, seed: int = 1, **sections: dict[str, Any]) -> RunConfig:
    """Write a checkpoint of a small random model to `folder`; sections as in `small_config`.

    Its weights are large enough that every continuation differs from the others.
    """
    model = {"init_std": 0.3, **sections.pop("model", {})}
    config = small_config(folder / "data", folder / "run", model=model, **sections)
    network = build_model(config.model, Mesh.single(), options=BuildOptions())
    initialise(network, seed, config.model, device=torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    named = [(shard_of(each, name), each) for name, each in network.named_parameters()]
    name = save_weights(folder, named, pipeline_rank=0, tensor_rank=0)
    (folder / manifest.CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    files = manifest.describe_files(folder, [manifest.CONFIG_NAME, name])
    layout = manifest.Layout(1, 1, 1, 0, "fp32")
    manifest.write_manifest(folder, manifest.Manifest(1, 8, layout, files, None, {}))
    return config
