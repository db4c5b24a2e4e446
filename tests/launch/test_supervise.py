"""supervise.sh over commands that end as each test wants."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT
from tests.launch.machine import environment_with, run, started, wait_for

SUPERVISE = ["bash", str(ROOT / "launch" / "supervise.sh")]
# What a start does: the lines of a plan, one a start, are shell; the words it got are recorded.
COMMAND = """
echo "$*" >>"$FOLDER/starts"
number="$(wc -l <"$FOLDER/starts")"
save() {
    mkdir -p "$RUN/checkpoints"
    echo "step_$1" >"$RUN/checkpoints/new"
    mv "$RUN/checkpoints/new" "$RUN/checkpoints/latest"
}
forever() {
    touch "$FOLDER/ready"
    while :; do read -r -t 0.1 <> <(:) || :; done
}
export -f forever
eval "$(sed -n "${number}p" "$FOLDER/plan")"
"""
NO_SLEEP = 'echo "$1" >>"$FOLDER/slept"\n'


class Supervision:
    """A folder with a command whose starts follow a plan, and a `sleep` that takes no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_folder = folder / "run"
        tools = folder / "tools"
        tools.mkdir()
        for name, script in (("command", COMMAND), ("sleep", NO_SLEEP)):
            (tools / name).write_text(f"#!/bin/bash\n{script}", encoding="utf-8")
            (tools / name).chmod(0o755)
        path = f"{tools}:{os.environ['PATH']}"
        self.environment = environment_with(PATH=path, FOLDER=str(folder), RUN=str(self.run_folder))
        self.environment.pop("ROOTS_JOB_START", None)

    def words(self, *options: str) -> list[str]:
        return [*SUPERVISE, "--run", str(self.run_folder), *options, "command", "x.yaml", "a.b=c"]

    def plan(self, *starts: str) -> None:
        (self.folder / "plan").write_text("\n".join(starts) + "\n", encoding="utf-8")

    def result(self, *options: str) -> subprocess.CompletedProcess[str]:
        return run(self.words(*options), env=self.environment)

    def starts(self) -> list[str]:
        return (self.folder / "starts").read_text("utf-8").splitlines()

    def slept(self) -> list[str]:
        """Seconds that it has waited; the guard's second is none of them."""
        slept = (self.folder / "slept").read_text("utf-8").split()
        return [each for each in slept if each != "1"]


@pytest.fixture
def supervision(tmp_path: Path) -> Supervision:
    return Supervision(tmp_path)


def test_check_that_fails_ends_it_with_the_code_of_the_last_start(
    supervision: Supervision,
) -> None:
    supervision.plan("exit 7", "exit 1", "exit 0")
    asked = supervision.folder / "asked"
    # Passes once.
    result = supervision.result("--check", f"mkdir {asked}")
    assert (result.returncode, len(supervision.starts())) == (1, 2)
    assert result.stderr.splitlines()[-1] == (
        f"supervise.sh: ends, for `mkdir {asked}` failed: the last ended with code 1 (a bug, or "
        "a rank that was killed), try 2 of 5 after 20 s"
    )


def test_crash_is_started_again_from_what_was_saved(supervision: Supervision) -> None:
    """At once, where that was something new."""
    supervision.plan("exit 1", "save 00000012; kill -9 $$", "save 00000020; exit 6", "exit 0")
    result = supervision.result()
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "supervise.sh: start 1: the first; newest checkpoint: none",
        "supervise.sh: start 2: the last ended with code 1 (a bug, or a rank that was killed), "
        "try 1 of 5 after 10 s; newest checkpoint: none",
        "supervise.sh: start 3: the last ended with code 137 (SIGKILL) "
        "and has brought a newer checkpoint; newest checkpoint: step_00000012",
        "supervise.sh: start 4: the last ended with code 6 (not saved) "
        "and has brought a newer checkpoint; newest checkpoint: step_00000020",
        "supervise.sh: ended with code 0 (done)",
    ]
    # What it was told to begin with stands until it has saved.
    resumed = "x.yaml a.b=c checkpoint.resume=auto"
    assert supervision.starts() == ["x.yaml a.b=c"] * 2 + [resumed] * 2
    assert supervision.slept() == ["10"]


def test_starts_that_bring_nothing_are_bounded_and_come_ever_later(
    supervision: Supervision,
) -> None:
    supervision.plan("exit 1", "exit 1", "save 00000005; exit 1", *["save 00000005; exit 143"] * 4)
    result = supervision.result("--tries", "3", "--longest-delay", "35")
    assert result.returncode == 143
    assert supervision.slept() == ["10", "20", "10", "20", "35"]
    assert result.stderr.splitlines()[-1] == (
        "supervise.sh: gives up: the last ended with code 143 (SIGTERM), and 3 starts in a row "
        "brought no newer checkpoint"
    )


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 127, 130])
def test_what_starting_again_would_not_change_is_passed_on(
    supervision: Supervision, code: int
) -> None:
    supervision.plan(f"exit {code}")
    assert supervision.result().returncode == code
    assert len(supervision.starts()) == 1


@pytest.mark.parametrize(
    "option, code", [("--restart-on-interrupt", 3), ("--restart-on-divergence", 4)]
)
def test_interrupt_and_divergence_are_started_again_if_told(
    supervision: Supervision, option: str, code: int
) -> None:
    supervision.plan(f"exit {code}", f"exit {7 - code}")
    assert supervision.result(option).returncode == 7 - code
    assert len(supervision.starts()) == 2


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1"])
def test_signal_is_passed_on_and_waited_for(supervision: Supervision, name: str) -> None:
    # Not started again, though the code asks for it.
    supervision.plan(f"trap 'touch $FOLDER/{name}; exit 1' {name}; forever", "exit 0")
    with started(
        supervision.words(), env=supervision.environment, stderr=subprocess.PIPE
    ) as process:
        wait_for([supervision.folder / "ready"], process)
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(timeout=60) == 1
        lines = process.stderr.read().splitlines() if process.stderr else []
    assert (supervision.folder / name).exists()
    assert lines[-1] == f"supervise.sh: ended with code 1 after SIG{name}"
    assert len(supervision.starts()) == 1


def test_signal_before_the_first_start_has_nothing_to_save(supervision: Supervision) -> None:
    folder = supervision.folder
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    asks = '[[ "$2" == *find_spec* ]] || { touch "$FOLDER/ready"; read -r <"$FOLDER/pipe"; }'
    python.write_text(f"#!/bin/bash\n{asks}\n", encoding="utf-8")
    python.chmod(0o755)
    os.mkfifo(folder / "pipe")
    (folder / "x.yaml").touch()
    values = {**supervision.environment, "VIRTUAL_ENV": str(folder / "venv")}
    words = [*SUPERVISE, "command", str(folder / "x.yaml")]
    with started(words, env=values, stderr=subprocess.PIPE) as process:
        wait_for([folder / "ready"], process)
        process.send_signal(signal.SIGTERM)
        (folder / "pipe").write_text("\n", encoding="ascii")
        assert process.wait(timeout=60) == 3
        told = process.stderr.read() if process.stderr else ""
    assert told == "supervise.sh: ends by SIGTERM, before start 1: nothing to save\n"
    assert not (folder / "starts").exists()


def test_srun_gets_the_signal_that_it_passes_on(supervision: Supervision) -> None:
    (supervision.folder / "tools" / "command").rename(supervision.folder / "tools" / "srun")
    supervision.plan("trap 'exit 3' USR1; forever")
    words = [word if word != "command" else "srun" for word in supervision.words()]
    with started(words, env=supervision.environment) as process:
        wait_for([supervision.folder / "ready"], process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 3


# A rank that a launcher has left: in a session of its own, and saving when it is told.
ORPHAN = (
    """setsid bash -c 'trap "touch $FOLDER/saved; exit" TERM; forever' & """
    "while [[ ! -f $FOLDER/ready ]]; do :; done; exit 1"
)
STUBBORN = (
    """setsid bash -c 'trap "" TERM; echo $$ >$FOLDER/pid; forever' & """
    "while [[ ! -f $FOLDER/ready ]]; do :; done; exit 1"
)


def test_nothing_of_a_start_is_left_when_the_next_begins(supervision: Supervision) -> None:
    (supervision.folder / "tools" / "sleep").unlink()
    supervision.plan(
        ORPHAN,
        f"[[ -f $FOLDER/saved ]] || exit 2; rm $FOLDER/ready; {STUBBORN}",
        "if grep -qs 'State:.[^ZX]' /proc/$(<$FOLDER/pid)/status; then exit 2; fi",
    )
    assert supervision.result("--grace", "1", "--first-delay", "0").returncode == 0
    assert len(supervision.starts()) == 3


def test_run_ends_with_its_supervisor(supervision: Supervision) -> None:
    (supervision.folder / "tools" / "sleep").unlink()
    supervision.plan("trap 'touch $FOLDER/saved; exit 3' TERM; forever")
    with started(supervision.words(), env=supervision.environment) as process:
        wait_for([supervision.folder / "ready"], process)
        process.kill()
        wait_for([supervision.folder / "saved"])


@pytest.mark.parametrize(
    "records, code",
    [
        ("0.pid 1.pid", 1),
        ("0.pid 0.code=5_0 1.pid 1.code=6_0", 0),
        ("0.pid 0.code=9_1 1.pid 1.code=6_2", 2),
    ],
)
def test_ranks_say_what_a_launcher_of_others_does_not(
    supervision: Supervision, records: str, code: int
) -> None:
    """DeepSpeed's own command ends with 0 when its launcher was killed, torchrun always with 1."""
    files = [record.partition("=") for record in records.split()]
    writes = [
        f"echo {text.replace('_', ' ')} >$ROOTS_RANK_RECORDS/{name}" for name, _, text in files
    ]
    supervision.plan("; ".join([*writes, "exit 0"]), "exit 3")
    result = supervision.result()
    assert (result.returncode, len(supervision.starts())) == ((3, 2) if code == 1 else (code, 1))


def test_run_is_found_by_the_config_at_the_end_of_the_command(supervision: Supervision) -> None:
    config = supervision.folder / "x.yaml"
    config.write_text(f"run: {{name: run, directory: {supervision.folder}}}\n", encoding="utf-8")
    supervision.plan("save 00000003; exit 1", "exit 2")
    words = [*SUPERVISE, "command", "4", str(config), "training.steps=5"]
    result = run(words, env=supervision.environment)
    assert result.returncode == 2
    assert "; newest checkpoint: step_00000003\n" in result.stderr
    assert supervision.starts() == [
        f"4 {config} training.steps=5",
        f"4 {config} training.steps=5 checkpoint.resume=auto",
    ]
    refused = run([*words, "training.stepps=5"], env=supervision.environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("roots: error: training.stepps=5: ")
