"""The hosts of a run, for the scripts of launch/: what a hostfile and its filters leave, looked at.

    python -m roots.launching --via WHAT --scripts DIR --hostfile FILE [option ...] CONFIG [...]

Printed is, in lines for a shell:

    ssh WORD               each word of the command that reaches a host
    meet ADDRESS PORT      where ranks meet
    host NAME SLOT ...     each host in its order, with the slots that get a rank

Exit code 2 where something is wrong, each in one line that names the host; 3 where a signal has
stopped it, of which the script tells. Loads no torch.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from roots.errors import ExitCode, RootsError
from roots.launching.environment import enter
from roots.launching.gather import Way, by_ssh
from roots.launching.host_facts import HostFacts
from roots.launching.hosts import Host, read_hostfile, refuse_hostfile, select
from roots.launching.meeting import meeting
from roots.launching.ssh import ssh_command
from roots.launching.stop import Stopped, stopped_by_signals
from roots.launching.via import Via


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with 0, 2 or 3."""
    options = _parser().parse_args(arguments)
    try:
        enter(options.folder)
        with stopped_by_signals():
            for line in lines_for_shell(options):
                print(line)  # noqa: T201 - a program of its own
    except Stopped:
        sys.exit(int(ExitCode.INTERRUPTED))
    except RootsError as error:
        for line in error.lines:
            print(f"roots: error: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(int(error.exit_code))


def lines_for_shell(options: argparse.Namespace) -> Iterator[str]:
    """What is printed. Raises RootsError with everything that is wrong."""
    refuse_hostfile(options.config)
    hosts = select(read_hostfile(options.hostfile), options.include, options.exclude)
    ssh = ssh_command(options.ssh_port, options.ssh_options)
    ways = [by_ssh(host.name, ssh) for host in hosts]
    first = _look(options, hosts, ways) if options.checks == "on" else None
    met = meeting(ways[0], first)
    yield from (f"ssh {word}" for word in ssh)
    yield f"meet {' '.join(met.values())}"
    yield from (f"host {host.name} {' '.join(map(str, host.slots))}" for host in hosts)


def _look(
    options: argparse.Namespace, hosts: Sequence[Host], ways: Sequence[Way]
) -> HostFacts | None:
    """Look at every host for the run of the config; what that of rank 0 tells."""
    from roots.config.load import load_config
    from roots.config.rules.batch import batch_problems
    from roots.config.rules.table import TRAINING_RULES
    from roots.launching.examine import examine, for_launcher, request_of
    from roots.planner.stages import balanced_stages_have_experts

    rules = [*TRAINING_RULES, balanced_stages_have_experts]
    config = load_config(options.config, options.overrides, rules=rules)
    ranks = {host.name: host.ranks for host in hosts}
    request = for_launcher(request_of(config, options.config), options.via, options.scripts)
    look = examine(request, ways, ranks)
    problems = batch_problems(config, sum(ranks.values())) + look.problems
    if problems:
        raise RootsError(*problems)
    return look.first


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roots.launching", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--via", type=Via, required=True, help="what starts the ranks")
    parser.add_argument("--scripts", type=Path, required=True, help="the folder launch")
    parser.add_argument("--folder", type=Path, default=Path(), help="from which paths count")
    parser.add_argument("--hostfile", type=Path, required=True)
    parser.add_argument("--include", default="")
    parser.add_argument("--exclude", default="")
    parser.add_argument("--ssh-port")
    parser.add_argument("--ssh-options", default="")
    parser.add_argument(
        "--checks", choices=("on", "off"), default="on", help="off: look at no host"
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    return parser


if __name__ == "__main__":
    # Ctrl-C, which a shell lets what runs behind it ignore.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
