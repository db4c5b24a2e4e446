"""`roots doctor`: measures a machine or many, and names what is out of line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.launch import Exclude, Hostfile, Include, SshOptions, SshPort
from roots.cli.options.useless import refuse_useless
from roots.errors import ExitCode, RootsError, problem

if TYPE_CHECKING:
    from roots.launching.gather import Way


def doctor(
    context: typer.Context,
    *,
    hostfile: Hostfile = None,
    include: Include = "",
    exclude: Exclude = "",
    ssh_port: SshPort = None,
    ssh_options: SshOptions = "",
    disk: Annotated[
        Path, typer.Option(help="Folder whose disk is measured, the same on every host.")
    ] = Path(),
    exclude_to: Annotated[
        Path | None,
        typer.Option(help="Write the hosts to go without to this file, a line each; none: empty."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything that was measured, as JSON.")
    ] = False,
) -> None:
    """Measure hosts and what is between them, and name what is out of line with its peers.

    These are the hosts of a file, else the nodes of the Slurm job this is in, else this machine.
    """
    if hostfile is None:
        useless = ["include", "exclude", "ssh_port", "ssh_options"]
        refuse_useless(context, useless, "is for hosts of a file", "drop it, or give --hostfile")
    from roots.doctor.conduct import examine
    from roots.doctor.judge import COMPUTES, NAME_A_FOLDER, excluded, judge
    from roots.doctor.text import text_lines
    from roots.launching.gather import HERE

    ways, ranks = _hosts(hostfile, include, exclude, ssh_port, ssh_options)
    if list(ranks) == [HERE] and not disk.is_dir():
        rule = f"no such folder on {HERE}"
        raise RootsError(problem("--disk", str(disk), rule, NAME_A_FOLDER))
    if exclude_to is not None:
        _open(exclude_to)
    survey = examine(ways, ranks, disk.absolute(), _tell)
    found = judge(survey)
    out = excluded(survey, found)
    if exclude_to is not None:
        exclude_to.write_text("".join(f"{name}\n" for name in out), encoding="utf-8")
        _tell(f"wrote {exclude_to}: {len(out)} host{'s' * (len(out) != 1)} to go without")
    if as_json:
        lines = [{"hosts": each.hosts, "part": each.part, "line": each.line} for each in found]
        tree = {**survey.to_json(), "findings": lines, "exclude": out}
        typer.echo(json.dumps(tree, indent=2, allow_nan=False))
    else:
        for line in text_lines(survey):
            typer.echo(line)
    if not found:
        return
    if out:
        _tell(f"start runs without {', '.join(out)}: --exclude {'@'.join(out)}")
    wrong = any(each.part.startswith(COMPUTES) for each in found)
    code = ExitCode.FAULTY if wrong else ExitCode.BAD_INPUT
    raise RootsError(*(each.line for each in found), exit_code=code)


def _hosts(
    hostfile: Path | None, include: str, exclude: str, ssh_port: int | None, ssh_options: str
) -> tuple[list[Way], dict[str, int]]:
    """How each host is reached, and how many ranks it would get: 0 where nobody says that."""
    from roots.launching.environment import variable
    from roots.launching.gather import HERE, by_srun, by_ssh, here, nodes_of_job
    from roots.launching.hosts import read_hostfile, select
    from roots.launching.ssh import ssh_command

    if hostfile is not None:
        left = select(read_hostfile(hostfile), include, exclude)
        ssh = ssh_command(ssh_port, ssh_options)
        return [by_ssh(host.name, ssh) for host in left], {host.name: host.ranks for host in left}
    if variable("SLURM_JOB_NODELIST"):
        nodes = nodes_of_job()
        return [by_srun(node) for node in nodes], dict.fromkeys(nodes, 0)
    return [here()], {HERE: 0}


def _open(path: Path) -> None:
    """See that it can be written to, before anything is measured."""
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        fix = "name a file that you may write, in a folder that is there"
        raise RootsError(problem("--exclude-to", str(path), str(error.strerror), fix)) from None


def _tell(line: str) -> None:
    typer.echo(f"roots doctor: {line}", err=True)
