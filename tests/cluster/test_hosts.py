"""The simulated hosts are hosts: they have what the tests of launchers take for granted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import SCRIPT, Hosts, wait_until
from tests.cluster.slurm import Slurm


def test_hosts_have_names_addresses_and_processes_of_their_own(hosts: Hosts) -> None:
    show = "hostname; hostname -I; getent hosts node2; echo $$"
    first, second = (
        hosts.run(node, "bash", "-c", show).stdout.split() for node in hosts.names[1:3]
    )
    assert first[0] == "node1"
    assert second[0] == "node2"
    assert first[1] != second[1] == first[2]
    # Process numbers begin anew on every host.
    assert max(int(first[-1]), int(second[-1])) < 1000


def test_hosts_reach_each_other_by_pdsh_without_a_password(hosts: Hosts) -> None:
    result = hosts.run("head", "pdsh", "-S", "-R", "ssh", "-w", "node1,node2", "hostname; exit 7")
    assert sorted(result.stdout.split()) == ["node1", "node1:", "node2", "node2:"]
    assert result.returncode == 7


def test_cable_that_is_cut_is_silence_until_it_is_mended(hosts: Hosts) -> None:
    ask = ("ssh", "-o", "ConnectTimeout=1", "node2", "hostname")
    hosts.cut("node2")
    result = hosts.run("head", *ask)
    assert (result.returncode, "timed out" in result.stderr) == (255, True)
    hosts.mend("node2")
    # Within its second, unless the machine is busy.
    wait_until(lambda: hosts.run("head", *ask).stdout == "node2\n", "node2 answers again")


def test_host_that_is_switched_off_and_on_again_has_nothing_left(hosts: Hosts) -> None:
    with hosts.started("node1", "sleep", "1000") as process:
        wait_until(lambda: list(hosts.processes("node1").values()) == ["sleep 1000"], "it runs")
        hosts.switch_off("node1")
        assert process.wait(timeout=10) != 0
    assert not hosts.is_on("node1")
    hosts.switch_on("node1")
    assert hosts.processes("node1") == {}
    ask = ("ssh", "node1", "hostname")
    wait_until(lambda: hosts.run("head", *ask).stdout == "node1\n", "node1 answers")


def test_throttled_cable_carries_less(hosts: Hosts) -> None:
    hosts.throttle("node1", "4mbit")
    shown = hosts.run("node1", "tc", "qdisc", "show", "dev", "eth0").stdout
    assert "tbf" in shown
    assert "rate 4Mbit" in shown
    hosts.throttle("node1", "none")
    assert "tbf" not in hosts.run("node1", "tc", "qdisc", "show", "dev", "eth0").stdout


def test_signals_reach_a_command_on_a_host(hosts: Hosts) -> None:
    script = "trap 'exit 9' USR1; sleep infinity & echo ready; wait"
    with hosts.started("node1", "bash", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        hosts.send(process, signal.SIGUSR1)
        assert process.wait(timeout=20) == 9


def test_hosts_end_with_who_has_started_them(hosts: Hosts, tmp_path: Path) -> None:
    # `hosts` is there for its reasons to skip.
    folder = tmp_path / "hosts"
    script = f"bash {SCRIPT} up --owner $$ {folder} one two && echo up && read"
    owner = subprocess.Popen(
        ["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    processes = [int(path.read_text()) for path in folder.glob("*.pid")]
    assert len(processes) == 4
    owner.kill()
    owner.wait()
    wait_until(
        lambda: not folder.exists() and not any(Path(f"/proc/{pid}").exists() for pid in processes),
        "the hosts have ended",
    )


@pytest.mark.parametrize(
    "words, line",
    [
        ([], "no such action: ''; see --help"),
        (["in"], "in: FOLDER is missing; see --help"),
        (["in", "{folder}"], "in: HOST is missing; see --help"),
        (["in", "{folder}", "node1"], "in: COMMAND is missing; see --help"),
        (["in", "{folder}", "node9", "true"], "HOST=node9: must be one of head node1 node2 node3"),
        (["off", "/tmp", "node1"], "FOLDER=/tmp: no hosts there"),
        (["on", "{folder}", "node1"], "HOST=node1: is on"),
        (["link", "{folder}", "node1", "cut"], "link: must be down or up, not 'cut'"),
        (["rate", "{folder}", "node1"], "rate: RATE is missing; see --help"),
        (["up", "{folder}", "a"], "FOLDER={folder}: must be empty, or not there yet"),
        (
            ["up", "/dev/shm/x", "a"],
            "FOLDER=/dev/shm/x: hosts have a /run and /dev/shm of their own",
        ),
    ],
)
def test_wrong_arguments_are_told_in_one_line(hosts: Hosts, words: list[str], line: str) -> None:
    folder = str(hosts.folder)
    command = ["bash", str(SCRIPT), *(word.format(folder=folder) for word in words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = f"hosts.sh: {line.format(folder=folder)}\n"
    assert (result.returncode, result.stderr) == (2, expected)


def test_slurm_runs_tasks_on_several_hosts(slurm: Slurm) -> None:
    script = f"{sys.executable} -c 'import os; print(os.uname().nodename)'"
    shown = slurm.ask("srun", "--nodes=3", "--ntasks=3", "bash", "-c", script)
    assert sorted(shown.split()) == ["node1", "node2", "node3"]


def test_slurm_gives_its_devices(slurm: Slurm) -> None:
    words = ("srun", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=3")
    assert slurm.ask(*words, "printenv", "CUDA_VISIBLE_DEVICES").split() == ["0,1,2"] * 2


def test_slurm_mends_after_a_host_was_switched_off(slurm: Slurm) -> None:
    slurm.hosts.switch_off("node2")
    slurm.hosts.switch_on("node2")
    slurm.mend()
    assert slurm.node_state("node2") == "idle"
