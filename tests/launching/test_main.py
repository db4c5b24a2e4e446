"""What the scripts of launch/ are told of the hosts; a stand-in of ssh runs things here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from roots.launching.__main__ import main
from tests.launching.own_network import own_interface

CONFIG = """
run: {name: x, directory: runs}
training: {global_batch_size: 24, micro_batch_size: 1}
data: {train: data}
"""
SSH = """#!/bin/bash
while [[ "$1" == -* ]]; do if [[ "$1" == -[op] ]]; then shift; fi; shift; done
case "$1" in
    gone) echo "ssh: connect to host gone port 22: No route to host" >&2; exit 255 ;;
    typo) printf 'ssh: Could not resolve hostname typo: Name not known\\r\\n' >&2; exit 255 ;;
esac
echo "$1" >>{folder}/asked
export ADDRESS="$1"
shift
exec bash -c "$*"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "ssh": SSH.replace("{folder}", str(tmp_path)),
        # Each host has an address of its own.
        "hostname": '#!/bin/bash\necho "of-${ADDRESS%-too}"\n',
        "mpirun": "",
        "orted": "",
    }.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    # As by the user: this machine may call itself by an address of its own alone.
    monkeypatch.setenv("ROOTS_INTERFACE", own_interface()[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "rank.py").touch()
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "hosts").write_text("b slots=4\na slots=2\n", encoding="utf-8")
    for ending in ("bin", "idx"):
        (tmp_path / f"data.{ending}").write_bytes(b"tokens")
    return tmp_path


def words(folder: Path, *more: str, via: str = "deepspeed") -> list[str]:
    first = ["--via", via, "--scripts", "launch", "--folder", str(folder), "--hostfile", "hosts"]
    return [*first, *more, "--", "run.yaml"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a refusal, which prints nothing else and ends with 2."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    return [line.removeprefix("roots: error: ") for line in told.err.splitlines()]


def test_hosts_that_filters_leave_are_looked_at_and_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", own_interface()[1])
    main(words(folder, "--include=a@b:3,1,1", "--ssh-port=2222"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["ssh ssh", "ssh -p", "ssh 2222"]
    meet, *hosts = [line for line in lines if not line.startswith("ssh ")]
    assert meet.rpartition(" ")[0] == f"meet {own_interface()[1]}"
    assert hosts == ["host b 1 3", "host a 0 1"]
    assert sorted((folder / "asked").read_text("utf-8").split()) == ["a", "b"]


def test_without_checks_only_where_ranks_meet_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "fast")
    main(words(folder, "--checks=off"))
    assert (folder / "asked").read_text("utf-8") == "b\n"
    monkeypatch.setenv("MASTER_PORT", "7000")
    (folder / "run.yaml").write_text("what is no config", encoding="utf-8")
    capsys.readouterr()
    main(words(folder, "--checks=off"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:4] != "ssh "]
    assert lines == ["meet fast 7000", "host b 0 1 2 3", "host a 0 1"]
    assert (folder / "asked").read_text("utf-8") == "b\n"


def test_all_that_is_wrong_is_told_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "hosts").open("a", encoding="utf-8") as file:
        file.write("gone slots=1\ntypo slots=1\n")
    for path in ("data.idx", "launch/rank.py"):
        (folder / path).unlink()
    copy = "copy it there, or keep it where all hosts see it"
    size = "training.micro_batch_size=1 x data-parallel size 8 = 8"
    assert refused([*words(folder), "training.global_batch_size=6"], capsys) == [
        f"training.global_batch_size=6: must be a multiple of {size}; set it to 8 or 16",
        "host gone: does not tell about itself (ssh: connect to host gone port 22: No route to "
        "host); start it, or leave it out by --exclude gone",
        "host typo: does not tell about itself (ssh: Could not resolve hostname typo: Name not "
        "known); correct the name in the hostfile, or make it known",
        f"hosts b, a: data.idx: no such file; {copy}",
        f"hosts b, a: launch/rank.py: no such file; {copy}",
    ]


def test_host_of_two_names_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "hosts").write_text("a slots=4\na-too slots=2\n", encoding="utf-8")
    assert refused(words(folder), capsys) == [
        f"hosts a, a-too: are one machine, which calls itself {platform.node()}; "
        "give it one line of the hostfile, with all its slots"
    ]


def test_daemon_of_mpirun_must_be_on_every_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As on a host that has none.
    hide = f'[[ "$1" == b ]] || mv {folder}/tools/orted {folder}/hidden'
    text = SSH.replace("{folder}", str(folder)).replace("\nshift\nexec", f"\n{hide}\nshift\nexec")
    (folder / "tools" / "ssh").write_text(text, encoding="utf-8")
    (folder / "hosts").write_text("a slots=2\n", encoding="utf-8")
    orted = folder / "tools" / "orted"
    assert refused(words(folder, via="mpirun"), capsys) == [
        f"host a: {orted}: no such file; install it there"
    ]


@pytest.mark.parametrize(
    "more, line",
    [
        (["--include=z"], "--include='z': 'z' is not in the hostfile; its hosts are b, a"),
        (
            ["--ssh-port=0"],
            "--ssh-port='0': must be a port, 1 to 65535; give that of sshd on the hosts",
        ),
        (
            ["--include=a", "--exclude=b"],
            "--exclude='b': cannot be used together with --include; drop one of them",
        ),
    ],
)
def test_options_that_cannot_be_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], line: str
) -> None:
    assert refused(words(folder, *more), capsys) == [line]
    assert not (folder / "asked").exists()


def test_port_that_is_none_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_PORT", "http")
    (line,) = refused(words(folder), capsys)
    assert line.startswith("MASTER_PORT='http': must be a port, 1 to 65535; unset it")


def test_network_of_no_host_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTS_INTERFACE", "eth9")
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    interface, address = refused(words(folder), capsys)
    assert interface.startswith("hosts b, a: ROOTS_INTERFACE='eth9': no such interface (there are ")
    assert address == (
        "host b: MASTER_ADDR='192.0.2.1': is no address of this host, where rank 0 starts (of-b); "
        "unset it to have an address of b taken, or set it to one"
    )


def test_config_in_the_place_of_the_hostfile_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = [*words(folder)[:-3], "run.yaml", "--", "hosts"]
    assert refused(swapped, capsys) == [
        "CONFIG='hosts': is a hostfile, with lines `NAME slots=N`; "
        "name the run's YAML file as CONFIG, and this one as the hostfile"
    ]


def test_signal_ends_it_without_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script tells of it, which has got the signal."""
    text = '#!/bin/bash\nkill -s INT "$PPID"; exec sleep 60\n'
    (folder / "tools" / "ssh").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(words(folder))
    assert end.value.code == 3
    assert capsys.readouterr() == ("", "")


def test_folder_that_is_not_there_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words(folder)
    arguments[arguments.index(str(folder))] = "/nowhere"
    assert refused(arguments, capsys) == [
        "current folder='/nowhere': cannot be used (No such file or directory); "
        "change to a folder that is there"
    ]


def test_it_loads_no_torch(folder: Path) -> None:
    program = (
        "import sys; from roots.launching.__main__ import main; main(sys.argv[1:]); "
        "sys.exit(bool({'torch', 'deepspeed', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *words(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr
