"""Hosts, and Slurm on them, for the tests of this folder; each session has its own.

A test takes `hosts` (tests.cluster.hosts.Hosts: head, node1, node2, node3) or `slurm`
(tests.cluster.slurm.Slurm), may cut, switch off and leave there what it likes, and finds all of it
well again. Both need root and some Debian packages, which `bash tests/cluster/run.sh` names and,
told so, installs. What is marked whole_cluster runs by that script only: it costs minutes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import SCRIPT, Hosts, hosts_up
from tests.cluster.slurm import Slurm, slurm_up

# The first is where users sit and Slurm's controller runs; ranks run on the others.
NAMES = ("head", "node1", "node2", "node3")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "whole_cluster" not in config.option.markexpr:
        more = [item for item in items if item.get_closest_marker("whole_cluster")]
        config.hook.pytest_deselected(items=more)
        items[:] = [item for item in items if item not in more]


@pytest.fixture(scope="session")
def all_hosts() -> Iterator[Hosts]:
    """The hosts of this session, which nobody has put right after another test."""
    _need("hosts.sh")
    # Short, for the sockets in it.
    with hosts_up(Path(tempfile.mkdtemp(prefix="roots-hosts-", dir="/tmp")), NAMES) as hosts:
        yield hosts


@pytest.fixture
def hosts(all_hosts: Hosts) -> Iterator[Hosts]:
    """Hosts that are on and reach each other; what a test leaves on one is ended with that host."""
    yield all_hosts
    for host in all_hosts.names:
        if all_hosts.is_on(host) and host != all_hosts.names[0]:
            all_hosts.switch_off(host)
        if not all_hosts.is_on(host):
            all_hosts.switch_on(host)


@pytest.fixture(scope="session")
def slurm_daemons(all_hosts: Hosts) -> Slurm:
    """Slurm on the session's hosts: munge, slurmctld, and slurmd on all but the first host."""
    _need("slurm.sh")
    return slurm_up(all_hosts)


@pytest.fixture
def slurm(slurm_daemons: Slurm, hosts: Hosts) -> Iterator[Slurm]:
    """Slurm whose nodes are idle, with no job; a test may break any of them."""
    slurm_daemons.mend()
    yield slurm_daemons
    slurm_daemons.cancel_all()


def _need(script: str) -> None:
    """Skip where hosts cannot be simulated, and say what is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give simulated hosts a network of their own")
    command = ["bash", str(SCRIPT.with_name(script)), "missing"]
    missing = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if missing:
        pytest.skip(f"needs Debian packages: run `apt-get install {missing}`")
    probe = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("needs namespaces, which this machine does not let root make")
