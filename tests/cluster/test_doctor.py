"""`roots doctor` over real ssh: each planted fault is named, and healthy hosts are well."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.slurm import Slurm
from tests.helpers.sources import ROOT

# Loaded by every Python of the hosts. No machine lets one host have a time of its own, nor a disk
# of its own: node3's clock is wrong, and node2's disk takes 30 MB a second.
FAULTS = """
import os, threading, time
name = os.uname().nodename
if name == "node3":
    right_time = time.time
    time.time = lambda: right_time() + 5
if name == "node2":
    right_write = os.fsync
    def fsync(file):
        size = os.fstat(file).st_size
        threading.Event().wait(size / 30e6)
        right_write(file)
    os.fsync = fsync
"""
RUNS = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = "node1 slots=1\nnode2 slots=1\nnode3 slots=1\n"
    (tmp_path / "hosts").write_text(text, encoding="utf-8")
    return tmp_path


def examine(
    hosts: Hosts, folder: Path, *words: str, **environment: str
) -> tuple[int, dict[str, Any]]:
    """Exit code of `roots doctor` on the host where users sit, and what it has found."""
    command = [sys.executable, "-m", "roots.cli.main", "doctor", "--json"]
    options = ["--hostfile", str(folder / "hosts"), "--disk", str(folder), *words]
    result = hosts.run("head", *command, *options, OMP_NUM_THREADS="1", **environment)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


def test_healthy_hosts_are_well(hosts: Hosts, folder: Path) -> None:
    code, found = examine(hosts, folder, "--exclude-to", str(folder / "out"))
    assert found["findings"] == []
    assert code == 0
    assert list(found["rates"]) == ["node1", "node2", "node3"]
    assert all(rates["disk"] and rates["devices"][0]["matmul"] for rates in found["rates"].values())
    assert len(found["pairs"]) == 3
    assert all(pair["rate"] for pair in found["pairs"])
    assert found["reduce"] > 0
    assert found["seconds"] < 60
    assert sorted(path.name for path in folder.iterdir()) == ["hosts", "out"]
    assert (folder / "out").read_text(encoding="utf-8") == ""
    assert [hosts.processes(node) for node in hosts.names[1:]] == [{}, {}, {}]


@pytest.mark.whole_cluster
def test_nothing_is_found_on_healthy_hosts_in_ten_runs(hosts: Hosts, folder: Path) -> None:
    found = [examine(hosts, folder)[1]["findings"] for _ in range(RUNS)]
    assert found == [[]] * RUNS


@pytest.mark.whole_cluster
def test_slow_disk_wrong_clock_and_another_version_are_named(hosts: Hosts, folder: Path) -> None:
    record = importlib.metadata.distribution("torch").locate_file("")
    (metadata,) = Path(str(record)).glob("torch-*.dist-info/METADATA")
    version = importlib.metadata.version("torch")
    other = metadata.read_text("utf-8").replace(f"Version: {version}", "Version: 2.0.0", 1)
    (folder / "METADATA").write_text(other, encoding="utf-8")
    result = hosts.run("node1", "mount", "--bind", folder / "METADATA", metadata)
    assert result.returncode == 0, result.stderr
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(FAULTS, encoding="utf-8")
    path = f"{folder / 'site'}:{ROOT}"
    code, found = examine(hosts, folder, "--exclude-to", str(folder / "out"), PYTHONPATH=path)
    assert code == 2
    named = {(*each["hosts"], each["part"]) for each in found["findings"]}
    assert named == {("node1", "torch"), ("node2", "disk"), ("node3", "clock")}
    assert (folder / "out").read_text(encoding="utf-8").split() == ["node1", "node2", "node3"]


@pytest.mark.whole_cluster
def test_throttled_link_is_named(hosts: Hosts, folder: Path) -> None:
    hosts.throttle("node2", "100mbit")
    code, found = examine(hosts, folder)
    assert code == 2
    (finding,) = found["findings"]
    assert (finding["hosts"], finding["part"]) == (["node2"], "network")
    assert found["exclude"] == ["node2"]


@pytest.mark.whole_cluster
def test_host_without_a_cable_is_named_within_a_minute(hosts: Hosts, folder: Path) -> None:
    hosts.cut("node2")
    code, found = examine(hosts, folder)
    assert code == 2
    (finding,) = found["findings"]
    assert finding["line"].startswith("host node2: does not tell about itself (ssh: connect")
    assert found["seconds"] < 60


@pytest.mark.whole_cluster
def test_inside_a_job_its_nodes_are_measured(slurm: Slurm, folder: Path) -> None:
    words = f"{sys.executable} -m roots.cli.main doctor --json --disk {folder}"
    command = f"cd {ROOT} && PYTHONPATH={ROOT} OMP_NUM_THREADS=1 {words}"
    streams = [f"--output={folder}/found", f"--error={folder}/told"]
    job = slurm.submit("--nodelist=node1,node2", "--nodes=2", *streams, "--wrap", command)
    state = slurm.wait_for_state(job)["JobState"]
    assert state == "COMPLETED", (folder / "told").read_text(encoding="utf-8")
    found = json.loads((folder / "found").read_text(encoding="utf-8"))
    assert list(found["rates"]) == ["node1", "node2"]
    assert (found["pairs"][0]["hosts"], found["findings"]) == (["node1", "node2"], [])
    assert found["pairs"][0]["rate"]


@pytest.mark.whole_cluster
def test_slurm_takes_the_list_of_hosts_unless_it_is_empty(slurm: Slurm, folder: Path) -> None:
    out = folder / "out"
    out.write_text("node1\nnode2\n", encoding="utf-8")
    options = ["--nodes=1", f"--exclude={out}", "--output=/dev/null"]
    job = slurm.submit(*options, "--wrap", "true")
    assert slurm.wait_for_state(job)["NodeList"] == "node3"
    out.write_text("", encoding="utf-8")
    refused = slurm.run("sbatch", *options, "--wrap", "true")
    assert "Hostlist is empty" in refused.stderr
