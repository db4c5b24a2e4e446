"""launch/torchrun.sh on simulated hosts: one torchrun on each, which start ranks again together."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from roots.errors import ExitCode
from tests.cluster.hosts import Hosts, wait_until
from tests.cluster.runs import losses, start, write_run

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.whole_cluster]


def test_two_hosts_start_again_once_after_a_rank_was_killed(hosts: Hosts, tmp_path: Path) -> None:
    steps = 300
    alone = write_run(tmp_path, run={"name": "alone"}, training={"steps": steps})
    command = [sys.executable, "-m", "roots.cli.main", "train", str(tmp_path / "run.yaml")]
    assert hosts.run("node3", *command, DS_ACCELERATOR="cpu").returncode == 0
    run = write_run(tmp_path, training={"steps": steps})
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="ascii")
    script = ["torchrun.sh", "--max-restarts", "1", str(tmp_path / "hosts")]
    with start(hosts, run, script) as going:
        going.after_step(15)
        first = going.ranks()
        os.kill(first[1], signal.SIGKILL)
        wait_until(
            lambda: bool(set(going.ranks().values()) - set(first.values())), "ranks are back"
        )
        assert going.wait() == ExitCode.DONE, going.said
        wait_until(lambda: not going.left(), "nothing is left")
    assert "rank 1 on host node2: has died" in going.said
    assert set(going.codes.values()) == {0}
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


def test_run_that_is_told_to_stop_is_not_started_again(hosts: Hosts, tmp_path: Path) -> None:
    """To torchrun a rank that ends with 3 has failed, and it would start all again."""
    run = write_run(tmp_path, training={"steps": 100_000})
    (tmp_path / "hosts").write_text("node1 slots=2\n", encoding="ascii")
    script = ["torchrun.sh", "--max-restarts", "3", str(tmp_path / "hosts")]
    with start(hosts, run, script) as going:
        going.after_step(5)
        hosts.send(going.process, signal.SIGUSR1)
        assert going.wait() == ExitCode.INTERRUPTED, going.said
    assert going.codes == {0: 3, 1: 3}
