"""Environment variables for what starts without torch, which roots.device loads."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from roots.errors import RootsError, problem


def variable(name: str) -> str:
    """The value of an environment variable; "" where it is not set."""
    return os.environ.get(name, "")


def variables(*beginnings: str) -> dict[str, str]:
    """The variables whose names begin so."""
    return {name: value for name, value in os.environ.items() if name.startswith(beginnings)}


# What names the network interface of Gloo or NCCL; the first stands for both (launch/network.sh).
_INTERFACES = ("ROOTS_INTERFACE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def named_interfaces() -> dict[str, str]:
    """The variables that name network interfaces, as they are set.

    Those of Gloo and NCCL only where they say another than the first, from which they come.
    """
    first, *others = _INTERFACES
    both = variable(first)
    named = {
        name: variable(name) for name in others if variable(name).lstrip("=") not in ("", both)
    }
    return {**({first: both} if both else {}), **named}


def enter(folder: Path) -> None:
    """Make it the current one. Raises RootsError where it is not there, or was removed since."""
    try:
        os.chdir(folder)
        os.getcwd()
    except OSError as error:
        named = None if folder == Path() else str(folder)
        rule = f"cannot be used ({error.strerror})"
        fix = "change to a folder that is there"
        raise RootsError(problem("current folder", named, rule, fix)) from None


def become(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Run `command` in the place of this process, with `variables` besides those that are there.

    Signals and the exit code are its own from here on. Raises RootsError where it cannot be run.
    """
    os.environ.update(variables)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Python ignores these, and what is ignored stays so in whatever a process becomes.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        rule = f"cannot be run ({error.strerror})"
        fix = "install it, or put it on PATH"
        raise RootsError(problem("command", command[0], rule, fix)) from None
