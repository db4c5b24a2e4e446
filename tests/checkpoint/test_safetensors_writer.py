"""Writing safetensors files as a stream: what is recorded is what lies on the disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from roots.checkpoint import safetensors_writer
from roots.checkpoint.safetensors_writer import SafetensorsWriter, TensorPlan


@pytest.mark.parametrize("block_bytes", [7, 64, 1 << 20])
def test_record_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """The digest is made beside the writing, whatever the blocks."""
    monkeypatch.setattr(safetensors_writer, "_BLOCK_BYTES", block_bytes)
    tensors = {
        "half": torch.arange(70, dtype=torch.bfloat16).view(7, 10).t(),
        "wide": torch.linspace(0, 1, 33, dtype=torch.float64),
        "none": torch.empty(0, 3),
    }
    plans = [TensorPlan(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, plans, {}) as writer:
        for plan in writer.order:
            # Not kept by the caller, as a tensor that was copied for the writer alone.
            writer.write(tensors[plan.name].clone())
    content = path.read_bytes()
    assert writer.record.bytes == len(content)
    assert writer.record.to_json()["sha256"] == hashlib.sha256(content).hexdigest()
    for name, found in load_file(path).items():
        assert torch.equal(found, tensors[name])
