"""Looking at the hosts of a run before it starts: what it needs of them, and what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roots.config.load import files_of
from roots.config.run import RunConfig
from roots.errors import problem
from roots.files import is_url
from roots.launching.checks import Needs, judge, named_twice
from roots.launching.environment import named_interfaces
from roots.launching.gather import Request, Way, gather
from roots.launching.host_facts import HostFacts
from roots.launching.meeting import address_set, port_set
from roots.launching.via import OVER_SSH, Via


@dataclass(frozen=True)
class Look:
    """What came of a look at the hosts: a line for each problem, and what rank 0's host tells."""

    problems: list[str]
    first: HostFacts | None


def request_of(config: RunConfig, path: Path, ports: Sequence[int] = ()) -> Request:
    """What to look for on the hosts of the run of `config`, read from `path`.

    `ports` are those at which its ranks meet.
    """
    fields = dict(_named_paths(config))
    files = (*map(str, files_of(path)), *data_files(config), *fields)
    return Request(
        Path.cwd(),
        tuple(dict.fromkeys(files)),
        tuple(ports),
        config.run_directory,
        fields=fields,
    )


def for_launcher(request: Request, via: Via, scripts: Path) -> Request:
    """`request` with what that launcher needs: on several hosts, none of them named twice, the same
    rank.py in `scripts`, the folder launch, and the launcher's own program; and that MASTER_PORT is
    free and MASTER_ADDR the first host's, if they are set.

    Raises RootsError where that is no port.
    """
    if via not in OVER_SSH:
        return request
    programs = (_daemon_of_mpirun(),) if via is Via.mpirun else ()
    port = port_set()
    return replace(
        request,
        paths=(*request.paths, str(scripts / "rank.py")),
        ports=() if port is None else (port,),
        programs=tuple(filter(None, programs)),
        address=address_set(),
        apart=True,
    )


# What starts ranks, and how to get it; without --over pdsh a host is reached by ssh.
_PROGRAMS = {
    "mpirun": "run `apt-get install openmpi-bin` on every host, or load its module",
    "sbatch": "submit from a machine of the Slurm cluster, or start with --hostfile",
    "pdsh": "run `apt-get install pdsh`, or leave --over pdsh away",
}


def missing_programs(via: Via, options: Sequence[str]) -> list[str]:
    """A line for each program that this start needs here and that is not on PATH."""
    words = " ".join(options).replace("=", " ").split()
    needed: list[tuple[str, str, str]] = []
    if via is Via.mpirun:
        needed.append(("mpirun", "--via", via.value))
    if via is Via.slurm:
        needed.append(("sbatch", "--via", via.value))
    if via is Via.deepspeed and ("--over", "pdsh") in zip(words, words[1:]):
        needed.append(("pdsh", "--option", "--over pdsh"))
    return [
        problem(option, value, f"there is no {program} on PATH", _PROGRAMS[program])
        for program, option, value in needed
        if shutil.which(program) is None
    ]


def _daemon_of_mpirun() -> str:
    """What it starts on every host, by the same path as here; "" where this one has none."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        return ""
    daemon = Path(mpirun).with_name("orted")
    return str(daemon) if daemon.exists() else ""


def examine(request: Request, ways: Sequence[Way], ranks: Mapping[str, int]) -> Look:
    """Look for everything that would stop a run on these hosts.

    `ranks` is how many start on each, by the names of `ways`, the host of rank 0 first.
    """
    where = "" if request.run_directory is None else str(request.run_directory)
    answers = gather(ways, request)
    needs = Needs(
        ranks,
        where,
        named_interfaces(),
        request.programs,
        fields=request.fields,
        address=request.address,
        folder=str(request.folder),
    )
    problems = judge(answers, needs)
    if request.apart:
        problems = [each.line for each in named_twice(answers)] + problems
    return Look(problems, answers[0].facts)


def _named_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What the run starts from, each path with the field that names it."""
    if config.data.tokenizer not in (None, "bytes"):
        yield str(config.data.tokenizer), "data.tokenizer"
    for field in ("resume", "weights"):
        named = getattr(config.checkpoint, field)
        if named not in (None, "auto", "never") and not is_url(named):
            yield named, f"checkpoint.{field}"


def data_files(config: RunConfig) -> Iterator[str]:
    """The files of data that every rank opens, without those that may be missing."""
    sides = (".source", ".target") if config.objective == "pairs" else ("",)
    for source in (*config.data.train, *config.data.valid):
        for side in sides:
            yield f"{source.prefix}{side}.bin"
            yield f"{source.prefix}{side}.idx"
