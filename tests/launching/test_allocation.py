"""A Slurm job looks at its nodes by srun, and ends with 2 and their names where one is unfit."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.launching.allocation import main
from tests.launching.own_network import own_interface

SRUN = 'while [[ "$1" == --* ]]; do echo "$1" >>{folder}/asked; shift; done; exec "$@"'
CONFIG = """
run: {name: x, directory: runs}
training: {global_batch_size: 4, micro_batch_size: 1}
data: {train: data}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, script in (("srun", SRUN), ("scontrol", "echo n1; echo n2")):
        path = tmp_path / name
        text = script.replace("{folder}", str(tmp_path))
        path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    # As by the user: this machine may call itself by an address of its own alone.
    monkeypatch.setenv("ROOTS_INTERFACE", own_interface()[0])
    values = {"JOB_ID": "12", "NTASKS": "4", "JOB_NODELIST": "n[1-2]"}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_good_nodes_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ending in ("bin", "idx"):
        (folder / f"data.{ending}").write_bytes(b"x")
    main(["--folder", str(folder), "run.yaml"])
    assert capsys.readouterr().err == ""
    asked = (folder / "asked").read_text("utf-8").split()
    assert {"--nodelist=n1", "--nodelist=n2", "--overlap"} <= set(asked)


def test_unfit_nodes_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data.bin").write_bytes(b"x")
    with pytest.raises(SystemExit) as end:
        main(["--folder", str(folder), "run.yaml"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "roots: error: hosts n1, n2: data.idx: no such file; "
        "copy it there, or keep it where all hosts see it\n"
    )


def test_interface_that_no_node_has_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTS_INTERFACE", "eth9")
    monkeypatch.setenv("MASTER_ADDR", "10.9.9.9")  # Not what a job takes.
    for ending in ("bin", "idx"):
        (folder / f"data.{ending}").write_bytes(b"x")
    with pytest.raises(SystemExit) as end:
        main(["--folder", str(folder), "run.yaml"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(
        "roots: error: hosts n1, n2: ROOTS_INTERFACE='eth9': no such interface (there are "
    )


def test_port_that_is_none_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--folder", str(folder), "--port", "http", "run.yaml"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "roots: error: MASTER_PORT='http': must be a port, 1 to 65535; "
        "unset it to have one that follows from the number of the job\n"
    )


def test_layout_must_fit_the_tasks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--folder", str(folder), "run.yaml", "parallel.tensor=3"])
    assert end.value.code == 2
    assert "roots: error: world size=4: must be a multiple of " in capsys.readouterr().err
