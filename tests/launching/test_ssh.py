"""One command of ssh for all who ask hosts or start ranks there, and advice by its last words."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.launching.ssh import advice_of, ssh_command


def test_options_of_the_user_come_first_because_ssh_takes_the_first() -> None:
    words = ssh_command("2222", '-i key -o "ConnectTimeout=60"')
    assert words[:6] == ["ssh", "-p", "2222", "-i", "key", "-o"]
    assert words[6] == "ConnectTimeout=60"
    assert words.index("ConnectTimeout=60") < words.index("ConnectTimeout=10")
    assert "BatchMode=yes" in words


@pytest.mark.parametrize(
    "port, options, line",
    [
        ("22x", "", "--ssh-port='22x': must be a port, 1 to 65535; give that of sshd on the hosts"),
        (0, "", "--ssh-port='0': must be a port, 1 to 65535; give that of sshd on the hosts"),
        (
            None,
            "-i 'my key'",
            "--ssh-options=\"-i 'my key'\": 'my key' must be one word: pdsh and mpirun take it "
            "apart; write that option into ~/.ssh/config",
        ),
        (
            None,
            "-i 'key",
            '--ssh-options="-i \'key": no closing quotation; '
            "close it, or write the options into ~/.ssh/config",
        ),
    ],
)
def test_options_that_cannot_be_are_told(port: object, options: str, line: str) -> None:
    with pytest.raises(RootsError) as caught:
        ssh_command(port, options)
    assert caught.value.lines == (line,)


# What OpenSSH does with options when it is only asked what it would do: -G.
SSH = """#!/bin/bash
case "$*" in
    *-Z*) echo "unknown option -- Z" >&2; echo "usage: ssh [-46AaCf]" >&2; exit 255 ;;
    *stray*) echo "hostname stray" ;;
    *) echo "hostname ${*: -1}" ;;
esac
"""


@pytest.mark.parametrize(
    "options, said",
    [("-Z", "unknown option -- Z"), ("-i key stray", "one of the words is none"), ("-i key", "")],
)
def test_what_ssh_does_not_take_is_told_before_a_host_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, said: str
) -> None:
    (tmp_path / "ssh").write_text(SSH, encoding="utf-8")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    lines: tuple[str, ...] = ()
    try:
        ssh_command(None, options)
    except RootsError as error:
        lines = error.lines
    line = f"--ssh-options='{options}': must be options of ssh alone ({said}); "
    assert lines == ((f"{line}correct them, or leave them out",) if said else ())


@pytest.mark.parametrize(
    "silence, advice",
    [
        (
            "root@a: Permission denied (publickey).",
            "give it your key by `ssh-copy-id a`: ranks are started over ssh that asks for no "
            "password",
        ),
        ("Host key verification failed.", "look at its key and accept it once by `ssh a true`"),
        (
            "ssh: Could not resolve hostname a: Name or service not known",
            "correct the name in the hostfile, or make it known",
        ),
        (
            "ssh: connect to host a port 22: Connection refused",
            "start sshd there, or say by --ssh-port where it listens",
        ),
        (
            "ssh: connect to host a port 22: No route to host",
            "start it, or leave it out by --exclude a",
        ),
        (
            "ssh: connect to host a port 22: Connection timed out",
            "start it, or leave it out by --exclude a",
        ),
        (
            "env: '/opt/roots/bin/python': No such file or directory",
            "put this checkout and its environment at the same path there",
        ),
        (
            "/usr/bin/python: Error while finding module specification for 'roots.launching."
            "host_facts' (ModuleNotFoundError: No module named 'roots')",
            "put this checkout and its environment at the same path there",
        ),
        (
            "no folder /data here: Permission denied",
            "make it there: a run needs the same paths on every host",
        ),
        (
            "did not answer in 60 s",
            "see what `ssh -p 22 a true` says, or leave it out by --exclude a",
        ),
    ],
)
def test_advice_follows_the_reason(silence: str, advice: str) -> None:
    assert advice_of("a", ["ssh", "-p", "22"], silence) == advice
