"""A host tells versions, files, ports, limits, and what it sees of other hosts' probes."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import roots
from roots.launching.host_facts import (
    HASHED_BYTES,
    MISSING,
    HostFacts,
    Probe,
    answers,
    facts_here,
    mark_of,
    nearest_folder,
)


def test_facts_of_this_host(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("x", encoding="utf-8")
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        facts = facts_here([str(there), str(tmp_path / "not")], [port])
    assert facts.host == os.uname().nodename
    assert facts.versions["roots"].startswith(f"{roots.__version__} (sources ")
    assert facts.versions["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert facts.versions["torch"]
    assert facts.versions["deepspeed"]
    assert facts.taken == (port,)
    assert facts.files[str(there)].startswith("sha256 ")
    assert facts.files[str(tmp_path / "not")] == MISSING
    assert 0 < facts.shared_memory_free <= facts.shared_memory
    assert set(facts.limits) == {"nofile", "nproc", "memlock"}
    assert "127.0.0.1" in facts.interfaces["lo"]
    assert facts.meet == ()


@pytest.mark.parametrize(
    "address, meaning",
    [("10.9.9.9", ("10.9.9.9",)), ("no-such-host.invalid", ()), ("a..b", ()), ("x" * 70, ())],
)
def test_address_of_a_meeting_is_resolved(address: str, meaning: tuple[str, ...]) -> None:
    assert facts_here(meet=address).meet == meaning


def test_mark_is_equal_for_equal_files_alone(tmp_path: Path) -> None:
    one, two, long = (tmp_path / name for name in ("one", "two", "long"))
    one.write_text("a", encoding="utf-8")
    two.write_text("a", encoding="utf-8")
    assert mark_of(one) == mark_of(two)
    two.write_text("b", encoding="utf-8")
    assert mark_of(one) != mark_of(two)
    long.write_bytes(bytes(HASHED_BYTES + 1))
    assert mark_of(long) == f"{HASHED_BYTES + 1} bytes"
    assert mark_of(tmp_path) == "folder"
    assert mark_of(one / "x") == "unreadable: Not a directory"


def test_probe_stands_where_the_folder_would_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert nearest_folder(Path("runs/big")) == tmp_path
    (tmp_path / "runs").mkdir()
    one, two = Probe(Path("runs/big"), "one"), Probe(Path("runs/big"), "two")
    assert one.write() == ""
    assert (tmp_path / "runs" / "one").is_file()
    assert two.seen(["one", "two"]) == ["one"]
    (tmp_path / "runs" / "one").write_text("of another", encoding="utf-8")
    assert two.seen(["one"]) == []
    one.remove()
    assert list((tmp_path / "runs").iterdir()) == []


def test_probe_says_why_it_cannot_be_written(tmp_path: Path) -> None:
    # A name with a slash: to root, permissions would be no hindrance.
    refusal = Probe(tmp_path, "none/there").write()
    assert refusal == f"No such file or directory in {tmp_path}"
    (tmp_path / "file").touch()
    refusal = Probe(tmp_path / "file" / "run", "mine").write()
    assert refusal == f"{tmp_path / 'file'} is no folder"
    assert Probe(tmp_path / "none" / "run", "mine").write() == ""


def test_questions_are_answered_in_turn(tmp_path: Path) -> None:
    probe = Probe(tmp_path, "mine")
    probe.write()
    told = list(answers(io.StringIO("clock\nlook mine theirs\n"), probe))
    assert list(told[0]) == ["clock"]
    assert told[1] == {"seen": ["mine"]}


def test_command_tells_json_loads_no_torch_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import runpy, sys; sys.argv[0] = 'host_facts'; "
        "runpy.run_module('roots.launching.host_facts', run_name='__main__'); "
        "sys.exit(' '.join({'torch', 'numpy', 'pydantic'} & set(sys.modules)) or None)"
    )
    words = ["--folder", str(tmp_path), "--run-directory", "runs/x", "--probe", "p"]
    result = subprocess.run(
        [sys.executable, "-c", script, *words],
        input="look p q\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    facts, seen = map(json.loads, result.stdout.splitlines())
    told = HostFacts.from_json(facts)
    assert (told.refusal, told.interfaces) == ("", facts_here().interfaces)
    assert seen == {"seen": ["p"]}
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "roots.launching.host_facts", "--folder", str(tmp_path / "no")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == f"no folder {tmp_path}/no here: No such file or directory\n"
