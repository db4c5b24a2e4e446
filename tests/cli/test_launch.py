"""`roots launch` looks, tells all that is wrong, and becomes the script, which gets its signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roots.cli.main import main
from tests.helpers.sources import ROOT
from tests.launch.machine import started, wait_for

CONFIG = """
run: {name: small, directory: runs}
model: {hidden_size: 32, num_layers: 2, num_heads: 2, vocab_size: 256, sequence_length: 16}
parallel: {tensor: 2}
training: {micro_batch_size: 1, global_batch_size: 4, steps: 1}
data: {train: data/x}
"""
# Every test takes the scripts of a folder of its own, in which local.sh tells how it was started.
LOCAL = """
trap 'echo stopped; exit 3' TERM
printf '%s\\n' "$$" "$@" "VIRTUAL_ENV=${VIRTUAL_ENV:-}" >started.new
mv started.new started
if [[ "$*" == *run.name=waits* ]]; then while true; do read -rt 1 <><(:) || true; done; fi
trap - PIPE
(kill -s PIPE "$BASHPID"; echo 'survived SIGPIPE' >>started)
exit 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = ("SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT", "NCCL_DEBUG", "ROOTS_NETWORK")
    for name in (*names, "ROOTS_INTERFACE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    # No Slurm that may be installed here answers.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "bash").symlink_to("/bin/bash")
    for name in ("env", "mv", "cat", "basename", "dirname"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tools))
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "local.sh").write_text(LOCAL, encoding="utf-8")
    for name in ("network.sh", "slurm.sbatch"):
        text = (ROOT / "launch" / name).read_text(encoding="utf-8")
        (tmp_path / "launch" / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr("roots.cli.shipped.shipped_folder", lambda: tmp_path)
    return tmp_path


def make_data(folder: Path) -> None:
    (folder / "data").mkdir()
    for ending in ("bin", "idx"):
        (folder / "data" / f"x.{ending}").write_bytes(b"tokens")


def run(*words: str) -> int:
    """The exit code of `roots launch WORDS` in this process, which starts nothing."""
    with pytest.raises(SystemExit) as end:
        main(["launch", *words])
    return int(end.value.code or 0)


def command(folder: Path, *words: str) -> list[str]:
    """The same as a process of its own, with the scripts of `folder`."""
    program = (
        "import sys; from pathlib import Path; import roots.cli.shipped as shipped; "
        f"shipped.shipped_folder = lambda: Path({str(folder)!r}); "
        "from roots.cli.main import main; main(sys.argv[1:])"
    )
    return [sys.executable, "-c", program, "launch", *words]


def test_dry_run_shows_what_would_be_done_and_does_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(folder.rglob("*"))
    assert run("run.yaml", "--dry-run", "--ranks-per-node", "4", "run.name=x") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "via          local: neither a hostfile nor Slurm"
    assert lines[1] == "starts       4 ranks on this machine"
    assert lines[-1] == "command      bash launch/local.sh 4 run.yaml run.name=x"
    assert any("NCCL_DEBUG=WARN" in line for line in lines)
    assert set(folder.rglob("*")) == before


def test_dry_run_shows_what_filters_select(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "hosts").write_text("b slots=4\na slots=2\n", encoding="utf-8")
    words = ["--hostfile", "hosts", "--include", "a@b:3,1,1", "--ssh-port", "2222"]
    assert run("run.yaml", *words, "--dry-run", "--json") == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (shown["via"], shown["ranks"]) == ("deepspeed", 4)
    assert shown["hosts"] == {"b": [1, 3], "a": [0, 1]}
    options = ["--checks", "off", "--include", "a@b:3,1,1", "--ssh-port", "2222"]
    assert shown["command"] == ["bash", "launch/hostfile.sh", *options, "hosts", "run.yaml"]
    asked = [line.split(" 'env ")[0].split() for line in shown["checks"]]
    assert [(*words[:3], words[-1]) for words in asked] == [
        ("ssh", "-p", "2222", host) for host in "ba"
    ]
    assert all("--path launch/rank.py" in line for line in shown["checks"])


def test_slurm_job_file_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--via", "slurm", "--nodes", "2", "--ranks-per-node", "2", "--option=--account=us"]
    assert run("run.yaml", *words, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "command      sbatch runs/small.sbatch\n" in shown
    assert "#SBATCH --account=us\n" in shown
    assert not (folder / "runs").exists()


def test_layout_and_hosts_are_told_together(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run.yaml", "--ranks-per-node", "3") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        "roots launch: local (neither a hostfile nor Slurm): 3 ranks on this machine"
    )
    assert told[1].startswith("roots launch: looked at this machine for ")
    assert told[1].endswith(": 2 problems")
    size = "parallel.tensor x parallel.context x parallel.pipeline = 2"
    fix = "copy it there, or keep it where all hosts see it"
    assert told[2:] == [
        f"roots: error: world size=3: must be a multiple of {size}; "
        "start 2 ranks, or change the degrees",
        f"roots: error: this machine: data/x.bin: no such file; {fix}",
        f"roots: error: this machine: data/x.idx: no such file; {fix}",
    ]


def test_checks_alone_start_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_data(folder)
    assert run("run.yaml", "--checks", "only") == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith(": all is well")
    assert not (folder / "started").exists()


def test_useless_option_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run.yaml", "--json") == 2
    assert capsys.readouterr().err == (
        "roots: error: --json: is for a dry run; drop it, or give --dry-run\n"
    )


def test_it_becomes_the_script_whose_exit_code_is_its_own(folder: Path) -> None:
    words = command(folder, "run.yaml", "--checks", "off", "tracking.wandb_project=two words")
    with started(words, stderr=subprocess.PIPE) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    lines = (folder / "started").read_text(encoding="utf-8").splitlines()
    assert lines[:4] == [str(process.pid), "2", "run.yaml", "tracking.wandb_project=two words"]
    # What Python ignores is not ignored by the script.
    assert "survived SIGPIPE" not in lines


def test_signals_reach_the_script(folder: Path) -> None:
    words = command(folder, "run.yaml", "--checks", "off", "run.name=waits")
    with started(words, stdout=subprocess.PIPE) as process:
        wait_for([folder / "started"], process)
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (3, "stopped\n")


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1"])
def test_signal_during_the_look_ends_it_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make_data(folder)
    (folder / "hosts").write_text("a slots=2\n", encoding="utf-8")
    ssh = folder / "tools" / "ssh"
    ssh.write_text(f'#!/bin/bash\nkill -s {name} "$PPID"; exec /bin/sleep 60\n', encoding="utf-8")
    ssh.chmod(0o755)
    (folder / "launch" / "rank.py").touch()
    assert run("run.yaml", "--hostfile", "hosts") == 3
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"roots launch: stopped by SIG{name} before anything was started, nothing to save"
    ]


def test_signal_ends_the_wait_for_a_job_and_not_the_job(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sbatch = folder / "tools" / "sbatch"
    words = ["run.yaml", "--via", "slurm", "--ranks-per-node", "2", "--checks", "off"]
    for told, said in (
        ("Submitted batch job 12", "stopped by SIGTERM; job 12 goes on, `scancel 12` ends it"),
        ("", "stopped by SIGTERM, sbatch has told of no job; `squeue --me` is sure"),
    ):
        # What it says is read before the signal comes.
        wait = 'read -rt 0.3 <><(:); kill -s TERM "$PPID"; exec /bin/sleep 60'
        says = f"echo '{told}'" if told else ":"
        sbatch.write_text(f"#!/bin/bash\n{says}; {wait}\n", encoding="utf-8")
        sbatch.chmod(0o755)
        assert run(*words) == 3
        assert capfd.readouterr().err.splitlines()[-1] == f"roots launch: {said}"


def test_missing_sbatch_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run.yaml", "--via", "slurm", "--ranks-per-node", "2"]
    assert run(*words, "--checks", "off") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "roots: error: command='sbatch': cannot be run (No such file or directory); "
        "install it, or put it on PATH"
    )
    assert not (folder / "runs" / "small.sbatch").exists()
    make_data(folder)
    assert run(*words, "--checks", "only") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-2].endswith(": 1 problem")
    assert told[-1] == (
        "roots: error: --via='slurm': there is no sbatch on PATH; "
        "submit from a machine of the Slurm cluster, or start with --hostfile"
    )


def test_what_sbatch_says_of_a_job_comes_through(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sbatch = folder / "tools" / "sbatch"
    words = ["run.yaml", "--via", "slurm", "--ranks-per-node", "2", "--checks", "off"]
    told = "echo 'sbatch: error: first' >&2; echo 'sbatch: error: Invalid partition x' >&2"
    sbatch.write_text(f"#!/bin/bash\n{told}; exit 255\n", encoding="utf-8")
    sbatch.chmod(0o755)
    assert run(*words, "--partition", "x") == 2
    assert capfd.readouterr().err.splitlines()[-2:] == [
        "sbatch: error: first",
        "roots: error: --via='slurm': sbatch takes no such job (error: Invalid partition x); "
        "change --time, --partition, --nodes or --option; no job file is left",
    ]
    assert not (folder / "runs" / "small.sbatch").exists()
    # With --wait the exit code is the job's.
    sbatch.write_text(f"#!/bin/bash\necho Submitted; {told}; exit 3\n", encoding="utf-8")
    assert run(*words) == 3
    out, err = capfd.readouterr()
    assert (out, err.splitlines()[-1]) == ("Submitted\n", "sbatch: error: Invalid partition x")
    assert (folder / "runs" / "small.sbatch").is_file()


def test_missing_checkpoint_is_told_before_the_start(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(folder)
    assert run("run.yaml", "--checks", "only", "checkpoint.resume=runs/gone") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "roots: error: this machine: checkpoint.resume='runs/gone': no such file; "
        "copy it there, or keep it where all hosts see it"
    )


def test_network_that_is_not_there_is_told_before_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(folder)
    monkeypatch.setenv("ROOTS_NETWORK", "token-ring")
    monkeypatch.setenv("ROOTS_INTERFACE", "eth9")
    assert run("run.yaml") == 2
    profile, interface = capsys.readouterr().err.splitlines()[-2:]
    assert profile == (
        "roots: error: this machine: ROOTS_NETWORK=token-ring: must be infiniband, ethernet, off "
        "or auto; unset it to have that taken which fits this machine"
    )
    start = "roots: error: this machine: ROOTS_INTERFACE='eth9': no such interface (there are lo"
    assert interface.startswith(start)
    # The nodes of a job have other interfaces; the profile is the same everywhere.
    assert run("run.yaml", "--via", "slurm", "--checks", "off") == 2
    assert capsys.readouterr().err.splitlines()[-1] == profile


def test_hostfile_in_the_place_of_the_config_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "hosts").write_text("b slots=4\na slots=2\n", encoding="utf-8")
    assert run("hosts", "--hostfile", "run.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("roots: error: CONFIG='hosts': is a hostfile, ")


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ["--via", "pbs"],
            "--via='pbs': must be local, deepspeed, slurm, torchrun or mpirun; "
            "see `roots launch --help`",
        ),
        (["--nodes", "two"], "--nodes='two': must be an integer; see `roots launch --help`"),
        (["--ssh-port", "0"], "--ssh-port='0': must be at least 1; see `roots launch --help`"),
    ],
)
def test_value_that_no_option_takes(
    words: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run.yaml", *words) == 2
    assert capsys.readouterr().err == f"roots: error: {line}\n"
