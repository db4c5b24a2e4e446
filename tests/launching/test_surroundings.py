"""Slurm is there where it answers; the scripts are named as the user would name them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.launching.surroundings import network_lines, network_problems, surroundings
from tests.helpers.sources import ROOT


def tool(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that stands before all others of its name."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    "script, slurm",
    [("echo gpu:8", True), ("echo '(null)'", False), ("echo no server >&2; exit 1", None)],
)
def test_slurm_is_asked_for_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, slurm: bool | None
) -> None:
    tool(tmp_path, "sinfo", f'echo "$*" >{tmp_path}/asked; {script}', monkeypatch)
    assert surroundings(ROOT, "big").slurm is slurm
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert asked == "--noheader --format=%G --partition=big\n"


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "sinfo", "exit 1", monkeypatch)
    tool(tmp_path, "nvidia-smi", "printf 'A, 1.2\\nB, 1.2\\n'", monkeypatch)
    assert surroundings(ROOT).gpus == 2


def test_scripts_of_this_folder_are_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "sinfo", "exit 1", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert surroundings(ROOT).scripts == ROOT / "launch"
    monkeypatch.chdir(ROOT)
    assert surroundings(ROOT).scripts == Path("launch")


def test_python_is_named_unless_it_is_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "sinfo", "exit 1", monkeypatch)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert surroundings(ROOT).variables == {"VIRTUAL_ENV": sys.prefix}
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert surroundings(ROOT).variables == {}


def test_wrong_profile_of_the_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTS_NETWORK", "none")
    line = (
        "this machine: ROOTS_NETWORK=none: must be infiniband, ethernet, off or auto; "
        "unset it to have that taken which fits this machine"
    )
    with pytest.raises(RootsError) as caught:
        network_lines(ROOT / "launch")
    assert caught.value.lines == (line,)
    assert network_problems(ROOT / "launch") == [line]
    monkeypatch.setenv("ROOTS_NETWORK", "off")
    assert network_problems(ROOT / "launch") == []
