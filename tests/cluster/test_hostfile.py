"""launch/hostfile.sh on simulated hosts: DeepSpeed's launcher over real pdsh and ssh."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from roots.errors import ExitCode
from tests.cluster.hosts import Hosts, wait_until
from tests.cluster.runs import WATCH_SECONDS, losses, saved_step, start, write_run
from tests.cluster.test_launch_checks import HOLD_PORT
from tests.helpers.sources import ROOT

# A cut is noticed after the watchdog's time, or ssh's 15 s; then ranks write their stacks.
CUT_SECONDS = WATCH_SECONDS + 30.0


def refusal(hosts: Hosts, folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Exit code and words of hostfile.sh for what it must not start."""
    run = write_run(folder)
    script = ["hostfile.sh", "--over", "ssh", *words]
    with start(hosts, run, script, **environment) as going:
        code = going.wait()
    return code, going.said


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("node1 slots=1\nnode2 slots=1\nnode3 slots=2\n", encoding="ascii")
    return path


@pytest.mark.parametrize(
    "options, reason, fix",
    [
        (
            "-F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i {key}",
            "Permission denied (publickey)",
            "give it your key by `ssh-copy-id node1`: ranks are started over ssh that asks for no "
            "password",
        ),
        (
            "-F /dev/null -o UserKnownHostsFile=/dev/null",
            "Host key verification failed",
            "look at its key and accept it once by `ssh node1 true`",
        ),
        (
            "-p 2022",
            "Connection refused",
            "start sshd there, or say by --ssh-port where it listens",
        ),
    ],
    ids=["wrong key", "unknown key", "wrong port"],
)
def test_host_that_ssh_does_not_reach_is_named_with_the_fix(
    hosts: Hosts, tmp_path: Path, options: str, reason: str, fix: str
) -> None:
    (tmp_path / "hosts").write_text("node1 slots=1\n", encoding="ascii")
    hosts.run("head", "ssh-keygen", "-q", "-N", "", "-f", tmp_path / "key")
    more = options.format(key=tmp_path / "key")
    code, said = refusal(hosts, tmp_path, "--ssh-options", more, str(tmp_path / "hosts"))
    assert code == ExitCode.BAD_INPUT
    begin, _, end = said.partition(reason)
    assert begin.startswith("roots: error: host node1: does not tell about itself (")
    assert f"); {fix}" in end
    assert said.count("\n") == 1


def test_host_that_is_off_is_named(hosts: Hosts, tmp_path: Path, hostfile: Path) -> None:
    hosts.switch_off("node2")
    code, said = refusal(hosts, tmp_path, str(hostfile))
    assert code == ExitCode.BAD_INPUT
    assert said.startswith("roots: error: host node2: does not tell about itself (ssh: connect")
    assert said.endswith("); start it, or leave it out by --exclude node2\n")


def test_host_that_lacks_a_file_is_named(hosts: Hosts, tmp_path: Path, hostfile: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "empty").mkdir()
    hosts.run("node2", "mount", "--bind", tmp_path / "empty", tmp_path)
    hosts.run("node3", "mount", "-t", "tmpfs", "none", ROOT / "launch")
    code, said = refusal(hosts, tmp_path, str(hostfile))
    assert code == ExitCode.BAD_INPUT
    fix = "copy it there, or keep it where all hosts see it"
    for host, path in (("node2", tmp_path / "run.yaml"), ("node3", ROOT / "launch" / "rank.py")):
        others = ", ".join(each for each in hosts.names[1:] if each != host)
        line = f"roots: error: host {host}: {path}: no such file, but on {others}; {fix}"
        assert line in said.splitlines()


def test_port_that_is_taken_is_told(hosts: Hosts, tmp_path: Path, hostfile: Path) -> None:
    with hosts.started("node1", sys.executable, "-c", HOLD_PORT, "23456") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        code, said = refusal(hosts, tmp_path, str(hostfile), MASTER_PORT="23456")
    assert (code, said) == (
        2,
        "roots: error: host node1: port=23456: another program has this port; end it, or set "
        "MASTER_PORT to a free one\n",
    )


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.whole_cluster
def test_two_of_three_hosts_train_as_one_process_does(hosts: Hosts, tmp_path: Path) -> None:
    """By addresses, which are not the hosts' own names, and by a port of sshd's own."""
    alone = write_run(tmp_path, run={"name": "alone"}, training={"steps": 10})
    command = [sys.executable, "-m", "roots.cli.main", "train", str(tmp_path / "run.yaml")]
    assert hosts.run("node3", *command, DS_ACCELERATOR="cpu").returncode == 0
    run = write_run(tmp_path, training={"steps": 10})
    addresses = [hosts.run(node, "hostname", "-I").stdout.strip() for node in hosts.names[1:]]
    lines = [f"{address} slots=2\n" for address in addresses]
    (tmp_path / "hosts").write_text("".join(lines), encoding="ascii")
    for node in hosts.names[1:3]:
        sshd = hosts.run(node, "/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config", "-p", "2022")
        assert sshd.returncode == 0, sshd.stderr
    chosen = f"{addresses[1]}:1,1@{addresses[0]}:0"
    words = ["--over", "pdsh", "--include", chosen, "--ssh-port", "2022"]
    with start(hosts, run, ["hostfile.sh", *words, str(tmp_path / "hosts")]) as going:
        assert going.wait() == ExitCode.DONE, going.said
        wait_until(lambda: not going.left(), "nothing is left")
    used = f"hostfile.sh: 2 ranks: {addresses[0]} slots 0; {addresses[1]} slots 1\n"
    assert used in going.said
    assert set(going.codes.values()) == {0}
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.whole_cluster
def test_link_that_is_cut_ends_the_run_which_goes_on_to_the_same_loss(
    hosts: Hosts, tmp_path: Path, hostfile: Path
) -> None:
    steps = 400
    alone = write_run(tmp_path, run={"name": "alone"}, training={"steps": steps})
    command = [sys.executable, "-m", "roots.cli.main", "train", str(tmp_path / "run.yaml")]
    assert hosts.run("node3", *command, DS_ACCELERATOR="cpu").returncode == 0
    run = write_run(tmp_path, training={"steps": steps})
    script = ["hostfile.sh", "--over", "ssh", "--exclude", "node3", str(hostfile)]
    with start(hosts, run, script) as going:
        going.after_step(15)
        hosts.cut("node2")
        assert going.wait(CUT_SECONDS) == ExitCode.LOST, going.said
        wait_until(lambda: not going.left(), "nothing is left", CUT_SECONDS)
    assert "on host node2: " in going.said
    assert "hostfile.sh: host node2 is lost: the connection to it broke off" in going.said
    assert 0 < saved_step(run) < steps
    # On the host that was kept out.
    script = ["hostfile.sh", "--over", "ssh", "--exclude", "node2@node3:0", str(hostfile)]
    with start(hosts, run, script) as going:
        assert going.wait() == ExitCode.DONE, going.said
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
