"""Counters are read from what nvidia-smi prints, and from nothing where it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.doctor.counters import counters_here, nvlink_errors, table

NVLINK = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
\t Link 0: Replay Errors: 0
\t Link 0: Recovery Errors: 2
\t Link 0: CRC Errors: 0
\t Link 1: Replay Errors: 1
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)
\t Link 0: Replay Errors: 0
"""
SMI = """#!/bin/bash
case "$1" in
    *remapped_rows*) REMAPS ;;
    --query-gpu=ecc*) printf '%s\\n' "0, 1" "[N/A], [N/A]" ;;
    nvlink) cat "$(dirname "$0")/nvlink" ;;
esac
"""


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, remaps: str) -> None:
    """An nvidia-smi of two GPUs before all others."""
    (folder / "nvlink").write_text(NVLINK, encoding="ascii")
    (folder / "nvidia-smi").write_text(SMI.replace("REMAPS", remaps), encoding="ascii")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_all_counters_of_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "printf '%s\\n' '4, 0, No, Yes' '0, 0, No, No'")
    none = {"corrected ECC errors": 0, "uncorrected ECC errors": 0, "pending remaps": 0}
    assert counters_here() == [
        {**none, "corrected ECC errors": 4, "failed remaps": 1, "NVLink errors": 3},
        {**none, "failed remaps": 0, "NVLink errors": 0},
    ]


def test_older_gpus_know_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "echo 'Field is not valid'; exit 2")
    assert counters_here() == [
        {"corrected ECC errors": 0, "uncorrected ECC errors": 1, "NVLink errors": 3},
        {"NVLink errors": 0},
    ]


def test_without_driver_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert counters_here() == []


def test_what_is_not_understood_is_left_out() -> None:
    assert nvlink_errors("nothing\n Link 0: CRC Errors: 4\n") == {}
    assert table(["a", "b"], "1, 2\nERROR\n[N/A], Yes\n") == [{"a": 1, "b": 2}, {"b": 1}]
