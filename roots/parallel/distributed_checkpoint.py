"""Reading tensors, or boxes of them, from a torch.distributed.checkpoint folder in one process.

The format keeps a tensor as chunks in files `__RANK_N.distcp` and their places in `.metadata`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list


@dataclass(frozen=True)
class DistributedTensor:
    """Global shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class DistributedCheckpoint:
    """The tensors of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read `.metadata`. Raises OSError and pickle's errors if it is missing or torn."""
        self._reader = FileSystemReader(folder)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self.tensors = {
            name: DistributedTensor(tuple(stored.size), stored.properties.dtype)
            for name, stored in self._metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The box of `name` that starts at `offsets`, read from the chunks that it touches."""
        stored = self._metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        # Whatever no chunk covered would show as NaN.
        target = torch.full(tuple(sizes), torch.nan).to(stored.properties.dtype)
        plan = LoadPlan(create_read_items_for_chunk_list(name, stored, [box]))
        self._reader.read_data(plan, _OneTensor(target)).wait()
        return target


class _OneTensor(DefaultLoadPlanner):
    """Hands out the one tensor that is read."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Every read goes into it."""
        return self._target
