"""Looks at the nodes of the Slurm job that it runs in, before the ranks start there.

    python -m roots.launching.allocation [--folder DIR] [--port N] CONFIG [section.key=value ...]

The job file that `roots launch --via slurm` writes does this first. Exit code 2 where something is
wrong, each in one line that names the node.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from roots.config.load import load_config
from roots.config.rules.batch import batch_rule
from roots.errors import RootsError
from roots.launching.environment import enter, variable
from roots.launching.examine import examine, request_of
from roots.launching.gather import by_srun, nodes_of_job
from roots.launching.meeting import PORT
from roots.launching.ssh import port_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with 0 or 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--port", action="append", default=[], help="where ranks meet")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(arguments)
    try:
        enter(options.folder)
        _examine_nodes(options.config, options.overrides, options.port)
    except RootsError as error:
        for line in error.lines:
            print(f"roots: error: {line}", file=sys.stderr)  # noqa: T201 - a program of its own
        sys.exit(int(error.exit_code))


def _examine_nodes(path: Path, overrides: Sequence[str], texts: Sequence[str]) -> None:
    """Raise RootsError with everything that is wrong with this job."""
    fix = "unset it to have one that follows from the number of the job"
    ports = [port_of(PORT, text, fix) for text in texts]
    tasks, nodes = int(variable("SLURM_NTASKS") or 1), nodes_of_job()
    config = load_config(path, overrides, rules=[batch_rule(tasks)])
    ranks = dict.fromkeys(nodes, -(-tasks // len(nodes)))
    request = request_of(config, path, ports)
    look = examine(request, [by_srun(node) for node in nodes], ranks)
    if look.problems:
        raise RootsError(*look.problems)


if __name__ == "__main__":
    main()
