"""Looking at the hosts of a run before it starts: what it needs of them, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from roots.config.load import files_of
from roots.config.run import RunConfig
from roots.launching.checks import Needs, judge
from roots.launching.environment import variable
from roots.launching.gather import Request, Way, gather


def request_of(config: RunConfig, path: Path, ports: Sequence[int] = ()) -> Request:
    """What to look for on the hosts of the run of `config`, read from `path`.

    `ports` are those at which its ranks meet.
    """
    files = (*map(str, files_of(path)), *data_files(config))
    return Request(Path.cwd(), tuple(dict.fromkeys(files)), tuple(ports), config.run_directory)


def examine(request: Request, ways: Sequence[Way], ranks: Mapping[str, int]) -> list[str]:
    """A line for everything that would stop a run on these hosts.

    `ranks` is how many start on each, by the names of `ways`, the host of rank 0 first.
    """
    interface = variable("GLOO_SOCKET_IFNAME") or variable("ROOTS_INTERFACE")
    where = "" if request.run_directory is None else str(request.run_directory)
    return judge(gather(ways, request), Needs(ranks, where, interface))


def data_files(config: RunConfig) -> Iterator[str]:
    """The files that every rank opens, without those that may be missing."""
    sides = (".source", ".target") if config.objective == "pairs" else ("",)
    for source in (*config.data.train, *config.data.valid):
        for side in sides:
            yield f"{source.prefix}{side}.bin"
            yield f"{source.prefix}{side}.idx"
    if config.data.tokenizer not in (None, "bytes"):
        yield str(config.data.tokenizer)
