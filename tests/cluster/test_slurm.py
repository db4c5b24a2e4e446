"""launch/slurm.sbatch under real Slurm: what ends a job in the middle costs it no step."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from roots.config import RunConfig
from tests.cluster.hosts import wait_until
from tests.cluster.slurm import Slurm
from tests.helpers.command import run_roots
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.helpers.sources import ROOT
from tests.integration.runs import run

STEPS, GATE_STEP = 16, 8


class Job:
    """A run of small_config as a job, whose ranks wait before step GATE_STEP until `open_gate`."""

    def __init__(self, slurm: Slurm, folder: Path, config: RunConfig) -> None:
        self.slurm = slurm
        self.folder = folder
        self.run = config.run_directory
        self.gate = folder / "gate"
        self.number = ""
        tree = config.model_dump(mode="json")
        (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        _write_python(folder / "environment")

    def submit(self, *words: str, gate: bool = True, script: tuple[str, ...] = ()) -> None:
        values = {
            "VIRTUAL_ENV": str(self.folder / "environment"),
            "PYTHONPATH": str(ROOT),
            "ROOTS_HOME": str(ROOT),
            "ROOTS_TEST_GATE": str(self.gate),
            "ROOTS_TEST_GATE_STEP": str(GATE_STEP if gate else 0),
        }
        options = ("--gpus-per-node=0", "--ntasks-per-node=1", f"--output={self.folder}/%a.log")
        command = (ROOT / "launch" / "slurm.sbatch", *script, self.folder / "config.yaml")
        self.number = self.slurm.submit(*options, *words, *command, **values)

    def wait_at_gate(self, ranks: int) -> None:
        reached = [self.gate.with_name(f"gate.{rank}") for rank in range(ranks)]
        wait_until(
            lambda: all(path.exists() for path in reached), f"at the gate: {self.log()}", 240
        )

    def open_gate(self) -> None:
        self.gate.touch()

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log(), f"its log has {text!r}: {self.log()}", 300)

    def log(self) -> str:
        return "".join(path.read_text("utf-8") for path in sorted(self.folder.glob("*.log")))

    def finish(self, *states: str) -> dict[str, str]:
        try:
            return self.slurm.wait_for_state(self.number, *states, seconds=300)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from error

    def losses(self, folder: Path | None = None) -> list[float]:
        """The loss of every step, in their order; of one that was made twice, the last."""
        lines = ((folder or self.run) / "metrics.jsonl").read_text("utf-8").splitlines()
        losses = {record["step"]: record["loss"] for record in map(json.loads, lines)}
        assert sorted(losses) == list(range(1, STEPS + 1))
        return [losses[step] for step in sorted(losses)]


@pytest.fixture
def job(slurm: Slurm, tmp_path: Path) -> Job:
    return Job(slurm, tmp_path, _config(tmp_path, tmp_path))


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the same run in one process without Slurm."""
    folder = tmp_path_factory.mktemp("one")
    config = _config(folder, folder)
    run_distributed(run, 1, config)
    return [
        json.loads(line)["loss"]
        for line in (config.run_directory / "metrics.jsonl").read_text("utf-8").splitlines()
    ]


def test_time_limit_saves_and_requeues_and_the_losses_are_those_of_one_process(
    job: Job, one_process: list[float]
) -> None:
    job.submit("--nodes=2", "--time=30")
    job.wait_at_gate(2)
    # Less than the five minutes before which Slurm warns: it does so when it looks, twice a minute.
    job.slurm.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=5")
    job.wait_for_log("slurm.sbatch: SIGUSR1, the ranks save and leave")
    job.open_gate()
    job.wait_for_log("slurm.sbatch: saved after 0 restarts, back to the queue")
    # The next start shall not be warned before it has begun.
    wait_until(lambda: job.slurm.job(job.number)["JobState"] == "PENDING", "it waits again")
    job.slurm.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    ended = job.finish("COMPLETED")
    assert (ended["Restarts"], ended["ExitCode"], ended["NumNodes"]) == ("1", "0:0", "2")
    assert job.losses() == pytest.approx(one_process, rel=1e-5)
    assert f"resumed from {job.run}/checkpoints/step_{GATE_STEP:08d}" in job.log()
    # Every rank has a log of its own, by start.
    logs = sorted(path.relative_to(job.run / "logs") for path in job.run.glob("logs/*/*.log"))
    expected = [f"slurm-{job.number}.{n}/rank-0000{rank}.log" for n in (0, 1) for rank in (0, 1)]
    assert list(map(str, logs)) == expected


@pytest.mark.whole_cluster
def test_job_of_two_nodes_completes(job: Job, one_process: list[float]) -> None:
    job.submit("--nodes=2", gate=False)
    ended = job.finish()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), job.log()
    assert job.losses() == pytest.approx(one_process, rel=1e-5)


@pytest.mark.whole_cluster
def test_node_that_is_switched_off_is_replaced_by_a_spare(
    job: Job, one_process: list[float]
) -> None:
    job.submit("--nodes=2")
    job.wait_at_gate(2)
    assert job.slurm.job(job.number)["NodeList"] == "node[1-2]"
    job.slurm.hosts.switch_off("node2")
    job.open_gate()
    ended = job.finish("COMPLETED")
    assert (ended["Restarts"], ended["NodeList"]) == ("1", "node[1,3]")
    _check_node_fail(job, "2 ranks = data 2", one_process)


@pytest.mark.whole_cluster
def test_job_goes_on_with_the_node_that_is_left(job: Job, one_process: list[float]) -> None:
    job.submit("--nodes=1-2", "--ntasks-per-node=2", "--exclude=node3")
    job.wait_at_gate(4)
    assert job.slurm.job(job.number)["NodeList"] == "node[1-2]"
    job.slurm.hosts.switch_off("node2")
    job.open_gate()
    wait_until(lambda: job.slurm.job(job.number)["JobState"] == "PENDING", "it waits again")
    # Where it asks for GPUs, Slurm would have it wait for as many tasks as it had.
    job.slurm.ask("scontrol", "update", f"JobId={job.number}", "NumTasks=2")
    ended = job.finish("COMPLETED")
    assert (ended["Restarts"], ended["NodeList"]) == ("1", "node1")
    _check_node_fail(job, "2 ranks = data 2", one_process)


def _check_node_fail(job: Job, layout: str, losses: list[float]) -> None:
    assert re.findall(r"layout +(.*)", job.log())[-1].startswith(layout), job.log()
    assert job.losses() == pytest.approx(losses, rel=1e-5)
    record = (job.slurm.folder / "log" / "jobcomp.txt").read_text("utf-8")
    states = re.findall(rf"JobId={job.number} .*?JobState=(\w+)", record)
    assert states == ["NODE_FAIL", "COMPLETED"]


@pytest.mark.whole_cluster
def test_cancelled_job_leaves_a_good_checkpoint(job: Job, one_process: list[float]) -> None:
    job.submit("--nodes=2")
    job.wait_at_gate(2)
    job.slurm.ask("scancel", job.number)
    job.wait_for_log("slurm.sbatch: SIGTERM, the ranks save and leave")
    job.open_gate()
    ended = job.finish()
    assert ended["JobState"] == "CANCELLED"
    wait_until(lambda: not job.slurm.ask("squeue", "--noheader"), "it has left no task")
    assert run_roots("checkpoint", "verify", job.run).returncode == 0
    saved = (job.run / "checkpoints" / "latest").read_text("utf-8").strip()
    assert GATE_STEP <= int(saved.removeprefix("step_")) < STEPS
    # And it goes on from there.
    job.submit("--nodes=1", gate=False)
    assert job.finish()["JobState"] == "COMPLETED", job.log()
    assert job.losses() == pytest.approx(one_process, rel=1e-5)


@pytest.mark.whole_cluster
def test_array_runs_each_line_of_a_sweep(job: Job) -> None:
    sweep = job.folder / "sweep"
    rates = ("0.01", "0.005", "0.002")
    sweep.write_text("".join(f"optimizer.learning_rate={r}\n" for r in rates), encoding="utf-8")
    job.submit("--nodes=1", "--array=1-3", gate=False, script=("--sweep", str(sweep)))
    wait_until(lambda: not job.slurm.ask("squeue", "--noheader"), "all have ended", 300)
    first, *others = (job.losses(job.run.with_name(f"test-{n}")) for n in (1, 2, 3))
    assert all(first[0] == other[0] and first[-1] != other[-1] for other in others)
    states = job.slurm.ask("squeue", "--noheader", "--states=all", "--format=%T", "-j", job.number)
    assert states.split() == ["COMPLETED"] * 3


@pytest.mark.whole_cluster
def test_node_that_does_not_answer_is_left_out_of_the_next_try(
    job: Job, one_process: list[float], slow_to_notice: None
) -> None:
    # Slurm itself takes longer to find out than the ranks do.
    job.submit("--nodes=2")
    job.wait_at_gate(2)
    job.slurm.hosts.cut("node2")
    job.open_gate()
    job.wait_for_log("slurm.sbatch: node2 failed, back to the queue")
    # Slurm waits for the node's goodbye, or until it takes it for lost.
    job.slurm.hosts.mend("node2")
    ended = job.finish("COMPLETED")
    assert (ended["ExcNodeList"], ended["NodeList"]) == ("node2", "node[1,3]")
    assert job.losses() == pytest.approx(one_process, rel=1e-5)


@pytest.fixture
def slow_to_notice(slurm: Slurm) -> object:
    """Within the test Slurm gives a silent node minutes, as its own default does."""
    config = slurm.folder / "slurm.conf"
    before = config.read_text("utf-8")
    config.write_text(before.replace("SlurmdTimeout=8", "SlurmdTimeout=300"), encoding="utf-8")
    slurm.ask("scontrol", "reconfigure")
    yield
    config.write_text(before, encoding="utf-8")
    slurm.ask("scontrol", "reconfigure")


@pytest.mark.parametrize(
    "change, words, script, line",
    [
        (
            lambda tree: tree["parallel"].update(tensor=2),
            ("--nodes=1",),
            (),
            "roots: error: world size=1: must be a multiple of parallel.tensor",
        ),
        (None, ("--nodes=1",), ("--sweep", "{config}"), "needs an array: sbatch --array=1-"),
        (
            None,
            ("--nodes=1",),
            ("--container", "pyxis:image"),
            "slurm.sbatch: --container=pyxis:image: this srun has no --container-image",
        ),
        (
            None,
            ("--nodes=1",),
            ("--container", "apptainer:none.sif"),
            "slurm.sbatch: --container=apptainer:none.sif: no apptainer on PATH of node",
        ),
    ],
    ids=["layout", "sweep", "pyxis", "apptainer"],
)
def test_mistake_ends_a_job_with_code_2_and_a_line(
    job: Job,
    change: Callable[[dict], None] | None,
    words: tuple[str, ...],
    script: tuple[str, ...],
    line: str,
) -> None:
    config = job.folder / "config.yaml"
    if change is not None:
        tree = yaml.safe_load(config.read_text("utf-8"))
        change(tree)
        config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    job.submit(*words, script=tuple(word.format(config=config) for word in script))
    ended = job.finish()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert line in job.log()


def _config(data: Path, folder: Path) -> RunConfig:
    return small_config(
        write_dataset(data / "data"),
        folder,
        training={"steps": STEPS},
        checkpoint={"every_steps": 5},
        watchdog={"timeout_seconds": 10},
        tracking={"log_every_steps": STEPS},
    )


def _write_python(environment: Path) -> None:
    """An environment whose Python makes a rank one with a gate, and else is this one."""
    python = environment / "bin" / "python"
    python.parent.mkdir(parents=True)
    gated = ROOT / "tests" / "cluster" / "gated_rank.py"
    python.write_text(
        f"""#!/bin/bash
if [[ "$2" == */rank.py ]]; then exec {sys.executable} -u {gated} "${{@:3}}"; fi
exec {sys.executable} "$@"
""",
        encoding="utf-8",
    )
    python.chmod(0o755)
    assert os.access(python, os.X_OK)
