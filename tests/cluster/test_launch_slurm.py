"""`roots launch --via slurm` submits a job that looks at its nodes first, on real Slurm."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from roots.config import dump_config
from tests.cluster.slurm import Slurm
from tests.helpers.runs import small_config, write_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    config = small_config(write_dataset(tmp_path / "data" / "x"), tmp_path / "runs")
    (tmp_path / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    return tmp_path


def submit(slurm: Slurm, folder: Path, *overrides: str) -> str:
    """The number of the job that `roots launch` has submitted on the host where users sit."""
    options = ["--via", "slurm", "--nodes", "2", "--ranks-per-node", "1", "--time", "10"]
    options += [f"--option=--output={folder}/job.log", "--option=--nodelist=node1,node2"]
    # The nodes have GPUs by name alone.
    options += ["--option=--gpus-per-node=0"]
    words = [sys.executable, "-m", "roots.cli.main", "launch", str(folder / "run.yaml")]
    result = slurm.run(*words, *options, *overrides)
    assert result.returncode == 0, result.stderr
    told = result.stderr.splitlines()
    assert told[0] == "roots launch: slurm (--via says so): 2 ranks on nodes that Slurm chooses"
    assert told[1].endswith(": all is well")
    assert told[2] == f"roots launch: wrote {folder}/runs/test.sbatch"
    submitted = re.fullmatch(r"Submitted batch job (\d+)\n", result.stdout)
    assert submitted is not None, result.stdout
    return submitted[1]


def test_job_ends_before_it_trains_where_a_node_is_unfit(slurm: Slurm, folder: Path) -> None:
    mounted = slurm.hosts.run("node2", "mount", "-t", "tmpfs", "none", folder / "data")
    assert mounted.returncode == 0, mounted.stderr
    job = slurm.wait_for_state(submit(slurm, folder))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0")
    fix = "copy it there, or keep it where all hosts see it"
    assert (folder / "job.log").read_text(encoding="utf-8").splitlines() == [
        f"roots: error: host node2: {folder}/data/x.{ending}: no such file, but on node1; {fix}"
        for ending in ("bin", "idx")
    ]


@pytest.mark.whole_cluster
def test_job_looks_at_its_nodes_and_trains(slurm: Slurm, folder: Path) -> None:
    job = slurm.wait_for_state(submit(slurm, folder), seconds=240)
    log = (folder / "job.log").read_text(encoding="utf-8", errors="replace")
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert "done     " in log
