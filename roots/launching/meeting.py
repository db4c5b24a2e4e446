"""Where the ranks of several hosts meet: on the host of rank 0, at MASTER_ADDR and MASTER_PORT."""

from __future__ import annotations

from pathlib import Path

from roots.errors import RootsError, problem
from roots.launching.checks import silence
from roots.launching.environment import variable
from roots.launching.finding import hosts_named
from roots.launching.gather import Request, Way, gather
from roots.launching.host_facts import HostFacts
from roots.launching.ssh import port_of

ADDRESS, PORT = "MASTER_ADDR", "MASTER_PORT"


def address_set() -> str:
    """The address that the user has set, "" for none."""
    return variable(ADDRESS)


def port_set() -> int | None:
    """The port that the user has set, if any. Raises RootsError for what is none."""
    text = variable(PORT)
    return port_of(PORT, text, "unset it to have a free one found") if text else None


def meeting(way: Way, first: HostFacts | None = None) -> dict[str, str]:
    """Address and port, as variables: what is set, else what the host of rank 0 tells.

    It is asked by `way` where `first` is not known and needed. Raises RootsError where it does not
    answer, or has no address or port.
    """
    address, port = address_set(), port_set()
    if not address or port is None:
        first = first or _ask(way)
        address = address or next(iter(first.addresses), "")
        port = port or first.free_port
    where = hosts_named(way.name)
    if not address:
        fix = f"set {ADDRESS} to an address that all hosts reach"
        raise RootsError(problem(where, None, "`hostname -I` names no address there", fix))
    if not port:
        fix = f"set {PORT} to one that is"
        raise RootsError(problem(where, None, "of a hundred ports none is free there", fix))
    return {ADDRESS: address, PORT: str(port)}


def _ask(way: Way) -> HostFacts:
    (answer,) = gather([way], Request(Path("/")))
    if answer.facts is None:
        raise RootsError(silence(answer).line)
    return answer.facts
