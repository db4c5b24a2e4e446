"""Weights of a checkpoint as any layout writes them, without ranks that do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from roots.checkpoint.boxes import Piece
from roots.checkpoint.staging import entries_of
from roots.checkpoint.tensor_file import write_entries
from roots.parallel.shard import Shard


def save_weights(
    folder: Path,
    tensors: Iterable[tuple[Shard, Tensor]],
    *,
    pipeline_rank: int,
    tensor_rank: int,
    expert_rank: int = 0,
) -> str:
    """Write what a rank at that place writes to `folder/weights`; its name below `folder`."""
    pieces = [
        Piece(shard.name, shard, 0, tensor.detach().contiguous().view(-1))
        for shard, tensor in tensors
        if shard.tied_to is None
        and (shard.dim is not None or tensor_rank == 0)
        and (shard.expert or expert_rank == 0)
    ]
    place = f"pipeline_{pipeline_rank:03d}_tensor_{tensor_rank:03d}_expert_{expert_rank:03d}"
    path = folder / "weights" / f"{place}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_entries(path, list(entries_of(pieces)))
    return f"weights/{path.name}"
