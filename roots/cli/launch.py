"""`roots launch`: one front for the scripts of launch/, which looks at all hosts first."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roots.cli.notes import tell_notes
from roots.cli.options.useless import refuse_useless
from roots.errors import ExitCode, RootsError
from roots.launching.via import OVER_SSH, Via

if TYPE_CHECKING:
    from roots.launching.examine import Look
    from roots.launching.gather import Request, Way
    from roots.launching.plan import Plan, Wish


class Checks(str, Enum):
    """Whether hosts are looked at before a start."""

    ON = "on"
    OFF = "off"
    ONLY = "only"


ViaOption = Annotated[
    Via | None,
    typer.Option(
        help="What starts the ranks; default: deepspeed for a hostfile, slurm where one answers, "
        "else local."
    ),
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Nodes of the Slurm job.")]
RanksPerNode = Annotated[
    int | None,
    typer.Option(
        min=1, help="Default here: a rank for each GPU, without any the fewest of the layout."
    ),
]
Hostfile = Annotated[Path | None, typer.Option(help="File with a line `NAME slots=N` a host.")]
Include = Annotated[str, typer.Option(help="Only these hosts: `NAME[:SLOT,SLOT...]@NAME...`.")]
Exclude = Annotated[
    str, typer.Option(help="All hosts and slots but these; or a file's path, with a /.")
]
SshPort = Annotated[int | None, typer.Option(min=1, help="Port of sshd on the hosts.")]
SshOptions = Annotated[str, typer.Option(help="Options of ssh, as `-i KEY`.")]
TimeLimit = Annotated[str, typer.Option("--time", help="Time limit of the Slurm job.")]
Partition = Annotated[str, typer.Option(help="Partition of the Slurm job.")]
MoreOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="One more for sbatch, or words for the script of launch/."),
]
ChecksOption = Annotated[
    Checks, typer.Option(help="Look at every host first; only: and start nothing.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; do nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="The dry run as JSON.")]


def launch(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Values that win over the file's."),
    ] = None,
    *,
    via: ViaOption = None,
    nodes: Nodes = None,
    ranks_per_node: RanksPerNode = None,
    hostfile: Hostfile = None,
    include: Include = "",
    exclude: Exclude = "",
    ssh_port: SshPort = None,
    ssh_options: SshOptions = "",
    time_limit: TimeLimit = "",
    partition: Partition = "",
    options: MoreOptions = None,
    checks: ChecksOption = Checks.ON,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Start the run that CONFIG describes, here or on many hosts, by a script of launch/.

    Every host is looked at before: config, data, versions, ports, the folder of the run, clock,
    /dev/shm and ulimits. All that is wrong is told at once; then this process becomes the script.
    """
    from roots.launching.plan import Wish

    wish = Wish(
        config,
        tuple(overrides or ()),
        via=via,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        hostfile=hostfile,
        include=include,
        exclude=exclude,
        ssh_port=ssh_port,
        ssh_options=ssh_options,
        time=time_limit,
        partition=partition,
        options=tuple(options or ()),
    )
    if not dry_run:
        refuse_useless(context, ["as_json"], "is for a dry run", "drop it, or give --dry-run")
    _launch(wish, checks, dry_run, as_json)


def _launch(wish: Wish, checks: Checks, dry_run: bool, as_json: bool) -> None:
    """Plan, look, start; each raises RootsError for what is wrong.

    A signal that asks to stop ends it at once as long as nothing is started.
    """
    from roots.launching.environment import become
    from roots.launching.stop import Stopped, stopped_by_signals
    from roots.launching.submit import submit

    try:
        with stopped_by_signals():
            start = _prepare(wish, checks, dry_run, as_json)
    except Stopped as stop:
        _tell(f"stopped by {stop} before anything was started, nothing to save")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if start is None:
        return
    plan, met = start
    _write(plan)
    if plan.via is Via.slurm:
        raise typer.Exit(submit(plan.command, [Path(name) for name in plan.files]))
    become(plan.command, {**plan.environment, **met})


def _prepare(
    wish: Wish, checks: Checks, dry_run: bool, as_json: bool
) -> tuple[Plan, dict[str, str]] | None:
    """What to start, with where its ranks meet; None where only a look or a dry run was wished."""
    from roots.cli.shipped import shipped_folder
    from roots.config import load_config
    from roots.config.rules.batch import batch_problems
    from roots.config.rules.table import TRAINING_RULES
    from roots.launching.examine import for_launcher, missing_programs, request_of
    from roots.launching.hosts import refuse_hostfile
    from roots.launching.meeting import meeting
    from roots.launching.plan import make_plan
    from roots.launching.surroundings import network_lines, network_problems, surroundings
    from roots.planner.stages import balanced_stages_have_experts

    refuse_hostfile(wish.config)
    rules = [*TRAINING_RULES, balanced_stages_have_experts]
    config = load_config(wish.config, wish.overrides, rules=rules)
    around = surroundings(shipped_folder(), wish.partition)
    plan = make_plan(wish, config, around)
    lines = batch_problems(config, plan.ranks) + network_problems(around.scripts)
    request = for_launcher(request_of(config, wish.config), plan.via, around.scripts)
    ways = _ways(plan, wish)
    first = None
    if not dry_run:
        tell_notes(config, *plan.notes(config))
        _tell(f"{plan.via.value} ({plan.why}): {plan.where}")
        if checks is not Checks.OFF:
            look = _examine(plan, ways, request, missing_programs(plan.via, wish.options))
            lines, first = lines + look.problems, look.first
    if lines:
        raise RootsError(*lines)
    if dry_run:
        looks = [] if checks is Checks.OFF else _looks(ways, request)
        _show(plan, looks, network_lines(around.scripts), as_json)
        return None
    if checks is Checks.ONLY:
        return None
    return plan, meeting(ways[0], first) if plan.via in OVER_SSH else {}


def _ways(plan: Plan, wish: Wish) -> list[Way]:
    """How each host is reached. With Slurm it is this one alone: the job looks at its nodes."""
    from roots.launching.gather import HERE, by_ssh, here
    from roots.launching.ssh import ssh_command

    names = [host.name for host in plan.hosts if host.name != HERE]
    ssh = ssh_command(wish.ssh_port, wish.ssh_options)
    return [by_ssh(name, ssh) for name in names] or [here(HERE)]


def _examine(plan: Plan, ways: Sequence[Way], request: Request, missing: Sequence[str]) -> Look:
    """Look at the hosts; how long it took and how much is wrong, `missing` with it, is told."""
    from roots.launching.examine import examine
    from roots.launching.finding import hosts_named

    # On the machine that submits a Slurm job no rank starts.
    ranks = {host.name: host.ranks for host in plan.hosts} or {ways[0].name: 0}
    began = time.monotonic()
    look = examine(request, ways, ranks)
    look = replace(look, problems=[*missing, *look.problems])
    lines = look.problems
    place = f"{len(ways)} hosts" if len(ways) > 1 else hosts_named(ways[0].name)
    found = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}" if lines else "all is well"
    _tell(f"looked at {place} for {time.monotonic() - began:.1f} s: {found}")
    return look


def _looks(ways: Sequence[Way], request: Request) -> list[str]:
    """The command that looks at each host; the probe's name is another each time."""
    from roots.launching.gather import words_of

    return [
        shlex.join(way.reach(words_of(request, f".roots-launch-TOKEN-{number}")))
        for number, way in enumerate(ways)
    ]


def _write(plan: Plan) -> None:
    for name, text in plan.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        _tell(f"wrote {name}")


def _show(plan: Plan, looks: list[str], network: list[str], as_json: bool) -> None:
    """What would be done, for people or as JSON."""
    tree: dict[str, Any] = {
        "via": plan.via.value,
        "why": plan.why,
        "ranks": plan.ranks,
        "hosts": {host.name: host.slots for host in plan.hosts},
        "checks": looks,
        "files": dict(plan.files),
        "environment": dict(plan.environment),
        "network": network,
        "command": plan.command,
    }
    if as_json:
        typer.echo(json.dumps(tree, indent=2))
        return
    added = [f"{name}={value}" for name, value in plan.environment.items()]
    _table(
        {
            "via": [f"{plan.via.value}: {plan.why}"],
            "starts": [plan.where],
            "checks": looks,
            "environment": added,
            "network": network,
            "files": list(plan.files),
            "command": [shlex.join(plan.command)],
        }
    )
    for name, text in plan.files.items():
        typer.echo(f"\n{name}:\n{text}", nl=False)


def _table(rows: dict[str, list[str]]) -> None:
    """Each name once, before the first of its values."""
    for name, values in rows.items():
        for word, value in zip(chain([name], repeat("")), values):
            typer.echo(f"{word:12} {value}".rstrip())


def _tell(line: str) -> None:
    typer.echo(f"roots launch: {line}", err=True)
