"""Writing safetensors files as a stream: what is recorded is what lies on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
from mmap import mmap as anonymous
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from roots.checkpoint import safetensors_writer
from roots.checkpoint.safetensors_writer import SafetensorsWriter, TensorPlan


@pytest.mark.parametrize("block_bytes", [1, 5000, 1 << 20])
@pytest.mark.parametrize("direct", [True, False])
def test_record_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, direct: bool
) -> None:
    """The digest is made beside the writing, whatever the blocks and the way to the disk."""
    monkeypatch.setattr(safetensors_writer, "_LEAST_BLOCK_BYTES", block_bytes)
    if not direct:
        monkeypatch.delattr(os, "O_DIRECT")
    tensors = {
        "half": torch.arange(7000, dtype=torch.bfloat16).view(70, 100).t(),
        "wide": torch.linspace(0, 1, 3333, dtype=torch.float64),
        "none": torch.empty(0, 3),
        "page": torch.arange(4096, dtype=torch.uint8),
    }
    plans = [TensorPlan(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, plans, {}) as writer:
        for plan in writer.order:
            # Overwritten by the caller as soon as it is back.
            given = tensors[plan.name].clone()
            writer.write(given)
            given.zero_()
    content = path.read_bytes()
    assert writer.record.bytes == len(content)
    assert writer.record.to_json()["sha256"] == hashlib.sha256(content).hexdigest()
    for name, found in load_file(path).items():
        assert torch.equal(found, tensors[name])


def test_blocks_take_little_of_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three at most, of a thirty-second part each, however far the disk lags behind."""
    monkeypatch.setattr(safetensors_writer, "_LEAST_BLOCK_BYTES", 1)
    made: list[int] = []
    monkeypatch.setattr(
        safetensors_writer.mmap,
        "mmap",
        lambda _, length, flags: made.append(length) or anonymous(-1, length),
    )
    values = torch.zeros(100, 4096, dtype=torch.uint8)
    plan = TensorPlan("x", tuple(values.shape), values.dtype)
    with SafetensorsWriter(tmp_path / "x", [plan], {}) as writer:
        writer.write(values)
    assert made == [4 * 4096] * 3


def test_error_of_the_disk_ends_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever block it comes."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    values = torch.zeros(64, 4096, dtype=torch.uint8)
    plan = TensorPlan("x", tuple(values.shape), values.dtype)
    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(OSError, match="No space left"),
        SafetensorsWriter(tmp_path / "x", [plan], {}) as writer,
    ):
        writer.write(values)
