"""Checkpoints: weights by global name, DeepSpeed's state beside them, the manifest last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from roots.checkpoint.folders import read_config
from roots.checkpoint.locating import resolve_checkpoint
from roots.checkpoint.manifest import check_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_model", "load_model_weights", "read_config", "resolve_checkpoint"]


def load_model_weights(checkpoint: Path, module: nn.Module) -> None:
    """Fill every parameter of `module`, a whole model or one stage, from `checkpoint`.

    The model may be of any architecture, and written under any layout. Raises RootsError for
    a tensor that is missing or has another shape.
    """
    # Whoever asks for folders and manifests alone does not wait for torch.
    from roots.checkpoint.weights import load_weights
    from roots.parallel.shard import shard_of

    named = module.named_parameters()
    load_weights(checkpoint, ((shard_of(parameter, name), parameter) for name, parameter in named))
