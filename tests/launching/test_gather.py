"""All hosts are asked at once; one that does not answer is named and delays no other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from roots.launching.gather import Request, Way, by_srun, by_ssh, gather, here
from roots.launching.ssh import ssh_command
from roots.launching.stop import Stopped, stopped_by_signals


def _shell(text: str) -> Way:
    return Way(text, lambda _: ["bash", "-c", text])


def test_hosts_see_each_other_and_the_clock(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x", encoding="utf-8")
    request = Request(tmp_path, ("data", "other"), (), Path("runs/x"))

    def greets(words: Sequence[str]) -> list[str]:
        return ["bash", "-c", 'echo "Welcome"; echo "{}[]"; exec "$@"', "bash", *words]

    first, second = gather([here("one"), Way("two", greets)], request)
    for answer in (first, second):
        assert answer.facts is not None, answer.silence
        assert answer.facts.files["data"].startswith("sha256")
        assert answer.facts.files["other"] == "missing"
        assert answer.sees == {"one", "two"}
        assert abs(answer.clock_ahead) <= answer.clock_error + 0.001
    assert (first.name, second.name) == ("one", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_hosts_without_a_folder_of_the_run_are_not_asked_for_it(tmp_path: Path) -> None:
    (answer,) = gather([here("one")], Request(tmp_path))
    assert (answer.silence, answer.sees) == ("", frozenset())
    assert answer.facts is not None
    assert list(tmp_path.iterdir()) == []


def test_hosts_with_folders_of_their_own_do_not_see_each_other(tmp_path: Path) -> None:
    def elsewhere(words: Sequence[str]) -> list[str]:
        return ["bash", "-c", f'cd {tmp_path}/b; exec "$@"', "bash", *_without_folder(words)]

    for name in "ab":
        (tmp_path / name).mkdir()
    ways = [here("a"), Way("b", elsewhere)]
    answers = gather(ways, Request(tmp_path / "a", run_directory=Path("runs")))
    assert [answer.sees for answer in answers] == [{"a"}, {"b"}]


def _without_folder(words: Sequence[str]) -> list[str]:
    """The command that stays where it is started."""
    place = words.index("--folder")
    return [word for word in [*words[:place], *words[place + 2 :]] if word not in ("-C", "/")]


def test_silent_hosts_are_told_with_the_reason(tmp_path: Path) -> None:
    ways = [
        _shell("echo 'Permission denied' >&2; exit 255"),
        _shell("exit 4"),
        _shell("read"),
        Way("no program", lambda _: ["/nowhere/ssh"]),
    ]
    answers = gather(ways, Request(tmp_path), seconds=0.5)
    assert [answer.facts for answer in answers] == [None] * 4
    assert [answer.silence for answer in answers] == [
        "Permission denied",
        "ended with code 4 and said nothing",
        "did not answer in 0.5 s",
        "no /nowhere/ssh here: No such file or directory",
    ]


def test_signal_ends_a_look_and_all_it_has_started_at_once(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    numbers = [tmp_path / name for name in "ab"]
    wait = 'while [[ ! -s {other} ]]; do :; done; kill -s TERM "$PPID"; exec sleep 60'
    asked = [
        _shell(f"echo $$ >{numbers[0]}; {wait.format(other=numbers[1])}"),
        _shell(f"echo $$ >{numbers[1]}; exec sleep 60"),
    ]
    began = time.monotonic()
    with pytest.raises(Stopped, match="SIGTERM"), stopped_by_signals():
        gather([*asked, here("one")], Request(tmp_path, run_directory=Path("runs")))
    # Otherwise each is waited for, five seconds.
    assert time.monotonic() - began < 4
    for number in numbers:
        assert not Path(f"/proc/{number.read_text('ascii').strip()}").exists()
    assert list((tmp_path / "runs").iterdir()) == []


def test_ways_to_other_hosts() -> None:
    words = ["python", "-m", "x", "a b"]
    *ssh, line = by_ssh("h", ssh_command(22)).reach(words)
    assert (ssh[:3], ssh[-1], line) == (["ssh", "-p", "22"], "h", "python -m x 'a b'")
    assert "BatchMode=yes" in ssh
    srun = by_srun("n1").reach(words)
    assert srun[0] == "srun"
    assert "--nodelist=n1" in srun
    assert srun[-4:] == words
