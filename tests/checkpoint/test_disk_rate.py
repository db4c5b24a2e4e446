"""How fast a disk is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roots.checkpoint import disk_rate
from roots.checkpoint.disk_rate import LEAST_BYTES, measure_disk


def test_rate_is_of_as_many_bytes_as_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    flush = os.fsync

    def noting(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        flush(descriptor)

    monkeypatch.setattr(disk_rate.os, "fsync", noting)
    monkeypatch.setattr(disk_rate, "LEAST_BYTES", 1000)
    monkeypatch.setattr(disk_rate, "_BLOCK_BYTES", 1024)
    monkeypatch.setattr(disk_rate, "_MOST_BYTES", 5000)
    for count, written in ((1000, 1000), (4000, 4000), (9000, 5000)):
        rate = measure_disk(tmp_path, count)
        assert rate is not None
        assert rate > 0
        assert sizes.pop() == written
    assert not list(tmp_path.iterdir())


def test_rate_is_unknown_of_little_and_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert measure_disk(tmp_path, LEAST_BYTES - 1) is None
    assert measure_disk(tmp_path / "none", LEAST_BYTES) is None
    assert not list(tmp_path.iterdir())
