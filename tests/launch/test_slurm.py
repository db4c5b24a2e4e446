"""slurm.sbatch with stand-ins for Slurm's commands: rendezvous, ranks, signals, requeue."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.machine import Machine, started, wait_for

# Runs the command once for each of two tasks, as srun would on two nodes, and passes USR1 on.
SRUN = """
echo "srun $1 $2" >>"$RECORD"
shift 2
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=0 "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
: >"$RECORD.started"
highest=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2>/dev/null; do wait "$task" || true; done
    code=0; wait "$task" || code=$?
    if ((code > highest)); then highest=$code; fi
done
exit "$highest"
"""
SCONTROL = """
echo "scontrol $*" >>"$RECORD"
if [[ "$1" == show ]]; then
    printf 'node-%s\\n' a b
    # More names than a pipe holds, so that a reader that leaves after the first is always noticed.
    printf 'node-%s\\n' {1..20000}
fi
"""
# An interpreter with ROOTS: says that it has it, and records a rank.
PYTHON = """
if [[ "$1" == -c ]]; then exit 0; fi
echo "rank $RANK of $WORLD_SIZE, local $LOCAL_RANK of $LOCAL_WORLD_SIZE," \
    "at $MASTER_ADDR:$MASTER_PORT: ${*:3}" >>"$RECORD"
if [[ -n "$WAITS" ]]; then
    trap 'exit 3' USR1
    read -r <>"$RECORD.pipe" &
    : >"$RECORD.ready$RANK"
    wait
fi
exit "$CODE"
"""
JOB = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "node-[a-b]",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "2",
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.tool("srun", SRUN)
    machine.tool("scontrol", SCONTROL)
    machine.tool("python3", PYTHON)
    subprocess.run(["mkfifo", tmp_path / "record.pipe"], check=True)
    return machine


def run(machine: Machine, code: int, **environment: str) -> tuple[int, list[str]]:
    record = machine.tools.parent / "record"
    values = {**JOB, "RECORD": str(record), "CODE": str(code), "WAITS": "", **environment}
    values["SLURM_SUBMIT_DIR"] = str(machine.checkout)
    result = machine.run("launch/slurm.sbatch", "configs/base.yaml", "run.name=x", **values)
    return result.returncode, record.read_text("utf-8").splitlines()


def test_every_task_becomes_a_rank_of_one_rendezvous(machine: Machine) -> None:
    code, lines = run(machine, 0)
    assert code == 0
    assert "scontrol show hostnames node-[a-b]" in lines
    ranks = sorted(line for line in lines if line.startswith("rank"))
    port = 20000 + 12345
    assert ranks == [
        f"rank {rank} of 2, local 0 of 1, at node-a:{port}: train configs/base.yaml run.name=x"
        for rank in (0, 1)
    ]


@pytest.mark.parametrize("code", [0, 1, 2, 4])
def test_exit_code_is_passed_on_without_requeue(machine: Machine, code: int) -> None:
    got, lines = run(machine, code, ROOTS_SUPERVISE="off")
    assert got == code
    assert not any("requeue" in line for line in lines)


def test_crash_is_started_again_inside_the_job(machine: Machine) -> None:
    code, lines = run(machine, 1, ROOTS_SUPERVISE="--tries 2 --first-delay 0")
    assert code == 1
    assert lines.count("srun --kill-on-bad-exit=0 --wait=120") == 3


def test_interrupted_run_goes_back_to_the_queue(machine: Machine) -> None:
    code, lines = run(machine, 3)
    assert code == 3
    assert lines[-1] == "scontrol requeue 12345"


def test_restarted_run_resumes(machine: Machine) -> None:
    _, lines = run(machine, 0, SLURM_RESTART_COUNT="1")
    ranks = [line for line in lines if line.startswith("rank")]
    assert all(line.endswith("run.name=x checkpoint.resume=auto") for line in ranks)


@pytest.mark.parametrize("number, requeued", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_signal_saves_and_only_a_time_limit_requeues(
    machine: Machine, number: signal.Signals, requeued: bool
) -> None:
    record = machine.tools.parent / "record"
    values = {**JOB, "RECORD": str(record), "CODE": "0", "WAITS": "yes"}
    values |= {"SLURM_SUBMIT_DIR": str(machine.checkout), "PATH": str(machine.tools)}
    command = [str(machine.tools / "bash"), "launch/slurm.sbatch", "configs/base.yaml"]
    with started(command, cwd=machine.checkout, env=values) as process:
        names = ("record.started", "record.ready0", "record.ready1")
        wait_for([record.with_name(name) for name in names], process)
        process.send_signal(number)
        if number == signal.SIGTERM:
            # scancel tells the tasks too.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii")
            for child in children.split():
                os.kill(int(child), signal.SIGUSR1)
        assert process.wait(timeout=60) == 3
    assert ("scontrol requeue 12345" in record.read_text("utf-8")) == requeued
