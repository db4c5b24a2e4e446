"""slurm.sbatch with stand-ins for Slurm's commands: rendezvous, ranks, signals, requeue.

tests/cluster/test_slurm.py has real Slurm.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.machine import Machine, started, wait_for

# Runs the command once for each of two tasks, as srun would on two nodes, and passes USR1 on.
SRUN = """
options=()
while [[ "$1" == --* ]]; do options+=("$1"); shift; done
echo "srun ${options[*]}" >>"$RECORD"
if [[ "${options[0]}" == --help ]]; then echo "$SRUN_HELP"; exit 0; fi
# Whether the nodes answer.
if [[ "$1" == true ]]; then [[ -z "$DEAD" ]]; exit; fi
if [[ "$1" == printenv ]]; then printf '%s\n' $ANSWERS; exit 0; fi
if [[ " ${options[*]} " == *" --ntasks=1 "* ]]; then exec "$@"; fi
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
if [[ "$1" == --oneliner ]]; then echo "JobId=12345 ExcNodeList=node-z Req=(null)"; exit 0; fi
if [[ "$*" == "show hostnames "* && -n "$ANSWERS$DEAD" ]]; then printf 'node-%s\n' a b; exit 0; fi
if [[ "$1" == show ]]; then
    printf 'node-%s\\n' a b
    # More names than a pipe holds, so that a reader that leaves after the first is always noticed.
    printf 'node-%s\\n' {1..20000}
fi
"""
# The time at which the job ends.
SQUEUE = """
echo 1800000000
"""
# An interpreter with ROOTS: says that it has it, names the run and its folder, and records a rank.
PYTHON = """
if [[ "$1" == -c ]]; then printf '%s\n' x "$RUN"; exit 0; fi
if [[ -n "$SAYS" ]]; then echo "$SAYS" >>"$RUN/logs/slurm-12345.0/rank-00001.log"; fi
if [[ -n "$SAVES" ]]; then mkdir -p "$RUN/checkpoints"; : >"$RUN/checkpoints/latest"; fi
echo "rank $RANK of $WORLD_SIZE, local $LOCAL_RANK of $LOCAL_WORLD_SIZE," \
    "at $MASTER_ADDR:$MASTER_PORT: ${*:3}" >>"$RECORD"
if [[ -n "$WAITS" ]]; then
    trap 'trap "" USR1; exit 3' USR1
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
    machine.tool("squeue", SQUEUE)
    machine.tool("python3", PYTHON)
    subprocess.run(["mkfifo", tmp_path / "record.pipe"], check=True)
    return machine


def run(machine: Machine, code: int, **environment: str) -> tuple[int, list[str]]:
    record = machine.tools.parent / "record"
    values = {**_values(machine), "CODE": str(code), **environment}
    words = shlex.split(values.pop("OPTIONS", ""))
    result = machine.run("launch/slurm.sbatch", *words, "configs/base.yaml", "run.name=x", **values)
    print(result.stdout, result.stderr)
    return result.returncode, record.read_text("utf-8").splitlines()


def _values(machine: Machine) -> dict[str, str]:
    folder = machine.tools.parent
    empty = dict.fromkeys(("WAITS", "SAYS", "SAVES", "DEAD", "ANSWERS", "SRUN_HELP"), "")
    places = {"RECORD": str(folder / "record"), "RUN": str(folder / "run"), "CODE": "0"}
    return {**JOB, **empty, **places, "SLURM_SUBMIT_DIR": str(machine.checkout)}


def test_help_prints_usage_and_options_and_needs_no_slurm(machine: Machine) -> None:
    result = machine.run("launch/slurm.sbatch", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    first, *lines = result.stdout.splitlines()
    assert first == "Train under Slurm, one task for each GPU."
    assert {"--sweep", "--container", "--mount"} <= set(" ".join(lines).split())
    assert not any(line.startswith("#") for line in lines)


def test_port_of_the_user_wins(machine: Machine) -> None:
    _, lines = run(machine, 0, MASTER_PORT="7000")
    ranks = [line for line in lines if line.startswith("rank")]
    assert all(" at node-a:7000: " in line for line in ranks)
    assert len(ranks) == 2


def test_option_behind_the_config_is_told(machine: Machine) -> None:
    words = ("launch/slurm.sbatch", "configs/base.yaml", "--sweep", "sweep")
    result = machine.run(*words, **_values(machine))
    assert result.returncode == 2
    assert result.stderr.startswith("slurm.sbatch: --sweep: options stand before CONFIG; usage: ")
    assert result.stderr.count("\n") == 1


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


def test_killed_rank_has_the_code_that_the_other_launchers_give(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the others say of it; srun gives the highest code. Where it runs next stays so."""
    says = "roots: error: rank 1 on host node-b: has died"
    got, lines = run(machine, 137, SAYS=says, ANSWERS="node-a node-b", ROOTS_SUPERVISE="off")
    assert got == 7
    assert not any("requeue" in line for line in lines)
    line = "slurm.sbatch: a signal has ended a rank (srun: 137), perhaps for lack of memory\n"
    assert capsys.readouterr().out.count(line) == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signal_before_there_are_ranks_has_nothing_to_save(
    machine: Machine, number: signal.Signals
) -> None:
    record = machine.tools.parent / "record"
    machine.tool("scontrol", ': >"$RECORD.asked"; read -r <"$RECORD.pipe"; echo node-a')
    values = {**_values(machine), "PATH": str(machine.tools)}
    command = [str(machine.tools / "bash"), "launch/slurm.sbatch", "configs/base.yaml"]
    options = {"cwd": machine.checkout, "env": values, "stderr": subprocess.PIPE}
    with started(command, **options) as process:
        wait_for([record.with_name("record.asked")], process)
        process.send_signal(number)
        record.with_name("record.pipe").write_text("\n", encoding="ascii")
        assert process.wait(timeout=60) == 3
        told = process.stderr.read() if process.stderr else ""
    line = f"slurm.sbatch: {number.name} before there were ranks, nothing to save\n"
    assert told == line
    assert not record.exists()


def test_crash_is_started_again_inside_the_job(machine: Machine) -> None:
    code, lines = run(machine, 1, ROOTS_SUPERVISE="--tries 2 --first-delay 0")
    assert code == 1
    assert len([line for line in lines if line.startswith("srun --kill-on-bad-exit=0")]) == 3


def test_interrupted_run_goes_back_to_the_queue(machine: Machine) -> None:
    code, lines = run(machine, 3, SAVES="yes")
    assert code == 3
    assert lines[-1] == "scontrol requeue 12345"


def test_run_without_time_for_a_checkpoint_does_not_come_back_for_ever(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(machine, 3)
    assert code == 3
    assert not any("requeue" in line for line in lines)
    assert (
        "slurm.sbatch: stopped before a checkpoint was made, and so not back to the queue: "
        "give it more --time, or less in --signal\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "code, says, answers, excluded",
    [
        (1, "", "node-a", "node-b"),
        (7, "", "node-a node-b", None),
        (7, "roots: error: rank 1 on host node-b: has died", "node-a node-b", "node-b"),
        (1, "roots: error: rank 1 on host node-b: has died", "node-a node-b", None),
        (8, "roots: error: rank 0 (node-a): computed", "node-a node-b", "node-a"),
        (8, "roots: error: tensor w: on ranks 0 (node-a), 1 (node-b)", "node-a node-b", None),
    ],
)
def test_failed_node_is_left_out_of_the_next_try(
    machine: Machine, code: int, says: str, answers: str, excluded: str | None
) -> None:
    got, lines = run(machine, code, SAYS=says, ANSWERS=answers, ROOTS_SUPERVISE="off")
    assert got == code
    told = [line for line in lines if "requeue" in line or "update" in line]
    update = f"scontrol update JobId=12345 ExcNodeList=node-z,{excluded}"
    assert told == (["scontrol requeue 12345", update] if excluded else [])


def test_job_loses_three_nodes_at_most(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    record = machine.tools.parent / "run" / "logs" / "slurm-12345.excluded"
    record.parent.mkdir(parents=True)
    record.write_text("node-c\nnode-d\nnode-e\n", encoding="utf-8")
    _, lines = run(machine, 1, ANSWERS="node-a", ROOTS_SUPERVISE="off")
    assert not any("requeue" in line for line in lines)
    assert "node-b would be the next to go without" in capsys.readouterr().out


def test_nodes_that_do_not_answer_get_no_further_start(machine: Machine) -> None:
    _, lines = run(machine, 1, DEAD="yes", ROOTS_SUPERVISE="--tries 3 --first-delay 0")
    assert len([line for line in lines if line.startswith("srun --kill-on-bad-exit=0")]) == 1


def test_run_of_an_array_has_a_name_and_overrides_of_its_own(machine: Machine) -> None:
    (machine.checkout / "sweep").write_text("a.b=1\na.b=2 'c.d=[3, 4]'\n", encoding="utf-8")
    _, lines = run(machine, 0, OPTIONS="--sweep sweep", SLURM_ARRAY_TASK_ID="2")
    rank = next(line for line in lines if line.startswith("rank"))
    assert rank.endswith("train configs/base.yaml run.name=x a.b=2 c.d=[3, 4] run.name=x-2")


@pytest.mark.parametrize(
    "options, index, line",
    [
        ("--sweep sweep", "", "--sweep=sweep: needs an array: sbatch --array=1-2"),
        ("--sweep sweep", "0", "--sweep=sweep: needs an array: sbatch --array=1-2"),
        ("--sweep sweep", "3", "--sweep=sweep: has no overrides in line 3"),
        ("--sweep none", "1", "--sweep=none: no such file"),
        (
            "--container docker:image",
            "",
            "--container=docker:image: KIND must be pyxis, apptainer or podman",
        ),
        (
            "--container pyxis:image",
            "",
            "--container=pyxis:image: this srun has no --container-image: its cluster has no pyxis",
        ),
        (
            "--container apptainer:a.sif --mount none",
            "",
            "--mount=none: no such file or folder",
        ),
    ],
)
def test_mistake_is_told_before_any_rank_starts(
    machine: Machine, options: str, index: str, line: str
) -> None:
    (machine.checkout / "sweep").write_text("a.b=1\na.b=2\n", encoding="utf-8")
    values = {**_values(machine), "SLURM_ARRAY_TASK_ID": index}
    command = ("launch/slurm.sbatch", *options.split(), "configs/base.yaml")
    result = machine.run(*command, **values)
    assert (result.returncode, result.stderr) == (2, f"slurm.sbatch: {line}\n")


CONTAINER = """
echo "$(basename "$0") $*" >>"$RECORD"
while [[ "$1" != python3 ]]; do shift; done
exec "$@"
"""


@pytest.mark.parametrize("kind", ["apptainer", "podman"])
def test_ranks_run_in_a_container(machine: Machine, kind: str) -> None:
    machine.tool(kind, CONTAINER)
    data = machine.tools.parent / "data"
    data.mkdir()
    options = f"--container {kind}:image:1 --mount {data}"
    code, lines = run(machine, 0, OPTIONS=options, NCCL_DEBUG="INFO", MINE="no")
    assert code == 0
    started = [line for line in lines if line.startswith(kind) and " train " in line]
    assert len(started) == 2
    here = machine.checkout
    for line in started:
        for place in (here, data):
            mount = f"--bind {place}" if kind == "apptainer" else f"--volume {place}:{place}"
            assert mount in line
        assert f"image:1 python3 -u {here}/launch/rank.py train configs/base.yaml" in line
        if kind == "podman":
            assert {"RANK", "MASTER_ADDR", "SLURM_JOB_ID", "NCCL_DEBUG"} <= set(line.split())
            assert "MINE" not in line.split()


def test_pyxis_gets_the_image_from_srun(machine: Machine) -> None:
    options = "--container pyxis:nvcr.io#image"
    code, lines = run(machine, 0, OPTIONS=options, SRUN_HELP="--container-image=[USER@]")
    assert code == 0
    here = machine.checkout
    expected = f"--container-image=nvcr.io#image --container-mounts={here}:{here} "
    expected += f"--container-workdir={here}"
    steps = [line for line in lines if line.startswith("srun --kill-on-bad-exit=0")]
    assert [line.endswith(expected) for line in steps] == [True]


def test_restarted_run_resumes(machine: Machine) -> None:
    _, lines = run(machine, 0, SLURM_RESTART_COUNT="1")
    ranks = [line for line in lines if line.startswith("rank")]
    assert all(line.endswith("run.name=x checkpoint.resume=auto") for line in ranks)


@pytest.mark.parametrize("number, requeued", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_signal_saves_and_only_a_time_limit_requeues(
    machine: Machine, number: signal.Signals, requeued: bool
) -> None:
    record = machine.tools.parent / "record"
    values = {**_values(machine), "WAITS": "yes", "SAVES": "yes", "PATH": str(machine.tools)}
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
