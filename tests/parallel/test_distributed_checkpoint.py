"""What torch.distributed.checkpoint writes by itself is read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from roots.parallel.distributed_checkpoint import DistributedCheckpoint


def test_a_folder_of_torchs_own_writer_is_read(tmp_path: Path) -> None:
    """Its metadata name the path that it was written to, an object of pathlib."""
    weight = torch.arange(6.0).view(2, 3)
    save({"weight": weight, "step": 3}, storage_writer=FileSystemWriter(tmp_path))
    stored = DistributedCheckpoint(tmp_path)
    assert set(stored.tensors) == {"weight"}
    assert torch.equal(stored.read("weight", (1, 1), (1, 2)), weight[1:, 1:])
