"""`roots launch` finds what is wrong with real hosts, over real ssh, before anything starts."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from roots.config import dump_config
from tests.cluster.hosts import Hosts
from tests.helpers.runs import small_config, write_dataset
from tests.helpers.sources import ROOT

CONFIG = """
run: {{name: small, directory: {folder}/runs}}
model: {{hidden_size: 32, num_layers: 2, num_heads: 2, vocab_size: 256, sequence_length: 16}}
parallel: {{tensor: 2}}
training: {{micro_batch_size: 1, global_batch_size: 6, steps: 1}}
data: {{train: {folder}/data/x}}
"""
# A clock of node3 alone: no machine lets one host have a time of its own.
CLOCK = """
import os, time
if os.uname().nodename == "node3":
    right = time.time
    time.time = lambda: right() + 5
"""
PORT = 23456
HOLD_PORT = (
    "import socket, sys; s = socket.socket(); s.bind(('', int(sys.argv[1]))); s.listen(); "
    "print('ready', flush=True); sys.stdin.read() or s.accept()"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for ending in ("bin", "idx"):
        (tmp_path / "data" / f"x.{ending}").write_bytes(b"tokens")
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    text = "node1 slots=2\nnode2 slots=2\nnode3 slots=2\n"
    (tmp_path / "hosts").write_text(text, encoding="utf-8")
    return tmp_path


def look(hosts: Hosts, folder: Path, *words: str, **environment: str) -> tuple[int, list[str]]:
    """Exit code and lines of `roots launch --checks only` on the host where users sit."""
    command = [sys.executable, "-m", "roots.cli.main", "launch", str(folder / "run.yaml")]
    options = ["--hostfile", str(folder / "hosts"), "--checks", "only", *words]
    result = hosts.run("head", *command, *options, **environment)
    assert result.stdout == ""
    return result.returncode, result.stderr.splitlines()


def test_good_hosts_are_found_good_and_left_as_they_were(hosts: Hosts, folder: Path) -> None:
    code, told = look(hosts, folder)
    assert code == 0, told
    slots = "node1:0,1 node2:0,1 node3:0,1"
    assert told[0] == f"roots launch: deepspeed (there is a hostfile): 6 ranks on {slots}"
    assert re.fullmatch(r"roots launch: looked at 3 hosts for [0-9.]+ s: all is well", told[1])
    assert len(told) == 2
    assert list((folder / "runs").iterdir()) == []
    assert [hosts.processes(node) for node in hosts.names[1:]] == [{}, {}, {}]


def test_every_fault_is_found_at_once_and_names_its_host(hosts: Hosts, folder: Path) -> None:
    runs, data = folder / "runs", folder / "data"
    # node1, where rank 0 is: the port is taken. node2: another torch, no data, a full /dev/shm.
    # node3: a folder of runs of its own, another clock. node4: not there.
    record = importlib.metadata.distribution("torch").locate_file("")
    (metadata,) = Path(str(record)).glob("torch-*.dist-info/METADATA")
    version = importlib.metadata.version("torch")
    other = metadata.read_text("utf-8").replace(f"Version: {version}", "Version: 2.0.0", 1)
    (folder / "METADATA").write_text(other, encoding="utf-8")
    for node, *words in (
        ("node2", "mount", "--bind", folder / "METADATA", metadata),
        ("node2", "mount", "-t", "tmpfs", "none", data),
        ("node2", "mount", "-o", "remount,size=16m", "/dev/shm"),
        ("node3", "mount", "-t", "tmpfs", "none", runs),
    ):
        result = hosts.run(node, *words)
        assert result.returncode == 0, result.stderr
    with (folder / "hosts").open("a", encoding="utf-8") as file:
        file.write("node4 slots=2\n")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(CLOCK, encoding="utf-8")
    path = f"{folder / 'site'}:{ROOT}"
    with hosts.started("node1", sys.executable, "-c", HOLD_PORT, str(PORT)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        code, told = look(hosts, folder, MASTER_PORT=str(PORT), PYTHONPATH=path)
    assert code == 2
    size = "training.micro_batch_size=1 x data-parallel size 4 = 4"
    copy = "copy it there, or keep it where all hosts see it"
    port = f"{PORT}: another program has this port; end it, or set MASTER_PORT to a free one"
    assert told[1].endswith(": 8 problems")
    assert told[2].startswith(
        f"roots: error: training.global_batch_size=6: must be a multiple of {size}; "
    )
    assert told[3].startswith("roots: error: host node4: does not tell about itself (ssh: ")
    assert [line.removeprefix("roots: error: ") for line in told[4:]] == [
        f"host node2: torch='2.0.0': must be {version} as on node1, node3; "
        "make the environments equal, as launch/quickstart.sh does, or share one",
        f"host node2: {data}/x.bin: no such file, but on node1, node3; {copy}",
        f"host node2: {data}/x.idx: no such file, but on node1, node3; {copy}",
        f"host node1: port={port}",
        f"host node3: {runs}/small: is not the folder of node1, node2: what is written there "
        "cannot be read here; set run.directory to a folder that all hosts share",
        "host node3: clock: is 5.0 s ahead of the others; "
        "run `timedatectl set-ntp true` or chronyd there",
        "host node2: /dev/shm='16 MiB free': 2 ranks need 32 MiB free there; "
        "start the container with --shm-size=1g, or run `mount -o remount,size=1g /dev/shm`",
    ]


@pytest.mark.whole_cluster
def test_what_was_looked_at_is_trained_on(hosts: Hosts, folder: Path) -> None:
    config = small_config(write_dataset(folder / "data" / "train"), folder / "runs")
    (folder / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    (folder / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="utf-8")
    command = [sys.executable, "-m", "roots.cli.main", "launch", str(folder / "run.yaml")]
    result = hosts.run("head", *command, "--hostfile", str(folder / "hosts"), timeout=240)
    assert result.returncode == 0, result.stderr
    assert "2 hosts for" in result.stderr
    metrics = (folder / "runs" / "test" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len(metrics) == 4
    assert [hosts.processes(node) for node in hosts.names[1:]] == [{}, {}, {}]


def test_host_that_falls_silent_is_named_within_bounds(hosts: Hosts, folder: Path) -> None:
    hosts.cut("node2")
    code, told = look(hosts, folder)
    assert code == 2
    assert len(told) == 3
    assert told[2].startswith("roots: error: host node2: does not tell about itself (ssh: connect")
    # ssh gives up by itself.
    seconds = float(re.search(r"for ([0-9.]+) s", told[1])[1])  # type: ignore[index]
    assert seconds < 30
