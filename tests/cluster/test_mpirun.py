"""launch/mpirun.sh on simulated hosts: Open MPI starts the ranks over ssh."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from roots.errors import ExitCode
from tests.cluster.hosts import Hosts, wait_until
from tests.cluster.runs import last_step, losses, saved_step, start, write_run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI: openmpi-bin"),
]


def test_two_hosts_stop_by_a_signal_to_mpirun_and_end_as_one_process(
    hosts: Hosts, tmp_path: Path
) -> None:
    """mpirun passes SIGUSR1 on to every rank; all save and leave, and the same command goes on."""
    steps = 300
    alone = write_run(tmp_path, run={"name": "alone"}, training={"steps": steps})
    command = [sys.executable, "-m", "roots.cli.main", "train", str(tmp_path / "run.yaml")]
    assert hosts.run("node3", *command, DS_ACCELERATOR="cpu").returncode == 0
    run = write_run(tmp_path, training={"steps": steps})
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="ascii")
    options = ["--mpirun-options", "--mca oob_tcp_if_include eth0"]
    script = ["mpirun.sh", *options, str(tmp_path / "hosts")]
    with start(hosts, run, script) as going:
        going.after_step(15)
        (mpirun,) = (
            process
            for process, words in hosts.processes("head").items()
            if words.startswith(str(shutil.which("mpirun")))
        )
        os.kill(mpirun, signal.SIGUSR1)
        assert going.wait() == ExitCode.INTERRUPTED, going.said
        wait_until(lambda: not going.left(), "nothing is left")
    assert going.codes == {0: 3, 1: 3}
    # Though mpirun gives each rank a terminal.
    assert "step 10/" in going.said
    assert "\x1b" not in going.said
    assert 15 <= saved_step(run) == last_step(run) < steps
    with start(hosts, run, script) as going:
        assert going.wait() == ExitCode.DONE, going.said
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        ("--no-such-option", "unknown option"),
        # Taken for the program, with all that comes behind as its words.
        ("--tag-output stray", "not words that it takes for the program"),
        ("--mca oob_tcp_if_include none0", "none0"),
    ],
)
def test_options_that_it_does_not_take_are_told_before_a_rank_starts(
    hosts: Hosts, tmp_path: Path, options: str, words: str
) -> None:
    run = write_run(tmp_path)
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="ascii")
    script = ["mpirun.sh", "--mpirun-options", options, str(tmp_path / "hosts")]
    with start(hosts, run, script) as going:
        assert going.wait() == ExitCode.BAD_INPUT, going.said
        wait_until(lambda: not going.left(), "nothing is left")
    line = going.said.splitlines()[-1]
    assert line.startswith(f"mpirun.sh: --mpirun-options={options}: must be options that mpirun ")
    assert words in line.partition(": must be ")[2]
    assert line.endswith("; correct them, or leave them out")
