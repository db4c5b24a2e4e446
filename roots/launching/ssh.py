"""How ssh reaches the hosts of a run, and what to do about one that it does not reach."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence

from roots.errors import RootsError, problem

# Nobody is there to give a password. A host that does not answer for 15 s is lost.
_RULES = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
# Stands for a host in a question about options.
_NO_HOST = "roots-asks"
_SAME_PATH = "put this checkout and its environment at the same path there"
# What a host or ssh says last, and what to do about it.
_ADVICE = {
    r"^no folder ": "make it there: a run needs the same paths on every host",
    r"Permission denied \(": "give it your key by `ssh-copy-id {name}`: ranks are started over ssh "
    "that asks for no password",
    r"Host key verification failed": "look at its key and accept it once by `ssh {name} true`",
    r"Could not resolve hostname": "correct the name in the hostfile, or make it known",
    r"Connection refused": "start sshd there, or say by --ssh-port where it listens",
    r"timed out|No route to host": "start it, or leave it out by --exclude {name}",
    r"^env: .*No such file|No module named": _SAME_PATH,
}


def ssh_command(port: object = None, options: str = "") -> list[str]:
    """`ssh` with its options: the user's first, because of several ssh takes the first.

    Raises RootsError for a port that is none, for options that ssh does not take, and for words
    that pdsh and mpirun, which take these apart at spaces, could not pass on.
    """
    words = ["ssh"]
    if port is not None:
        words += ["-p", str(port_of("--ssh-port", port, "give that of sshd on the hosts"))]
    try:
        more = shlex.split(options)
    except ValueError as error:
        fix = "close it, or write the options into ~/.ssh/config"
        raise RootsError(problem("--ssh-options", options, str(error).lower(), fix)) from None
    for word in more:
        if len(word.split()) != 1:
            rule = f"{word!r} must be one word: pdsh and mpirun take it apart"
            fix = "write that option into ~/.ssh/config"
            raise RootsError(problem("--ssh-options", options, rule, fix))
    if more and (refusal := _refusal([*words, *more])):
        rule = f"must be options of ssh alone ({refusal})"
        raise RootsError(problem("--ssh-options", options, rule, "correct them, or leave them out"))
    words += more
    for name, value in _RULES.items():
        words += ["-o", f"{name}={value}"]
    return words


def _refusal(words: Sequence[str]) -> str:
    """What ssh says of its options, "" where they are good; asked without reaching any host."""
    command = [*words, "-G", _NO_HOST]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
    except OSError:
        # Told by whoever looks at the hosts.
        return ""
    if run.returncode:
        return next(iter(run.stderr.splitlines()), f"it ends with code {run.returncode}")
    # Otherwise a word among the options was taken for the host.
    return "" if _NO_HOST in run.stdout else "one of the words is none"


def port_of(field: str, value: object, fix: str) -> int:
    """The port that `value` is. Raises RootsError where it is none."""
    text = str(value)
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 1 << 16:
        raise RootsError(problem(field, text, "must be a port, 1 to 65535", fix))
    return int(text)


def advice_of(name: str, ssh: Sequence[str], silence: str) -> str:
    """What to do about a host that `ssh` does not reach, or that is not fit, by its last words."""
    for pattern, advice in _ADVICE.items():
        if re.search(pattern, silence):
            return advice.format(name=name)
    return f"see what `{shlex.join([*ssh, name])} true` says, or leave it out by --exclude {name}"
