"""`roots train`: one rank of a training run; launch/ starts as many as the layout needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roots.cli.notes import tell_notes
from roots.errors import RootsError


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Values that win over the file's."),
    ] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = -1,
) -> None:
    """Train the model that CONFIG describes; start several ranks with launch/local.sh."""
    from roots.config import load_config
    from roots.config.rules.batch import batch_rule
    from roots.config.rules.table import has_training_data
    from roots.device import launch_environment, name_accelerator
    from roots.planner.stages import balanced_stages_have_experts

    environment = launch_environment()
    rules = [
        has_training_data,
        balanced_stages_have_experts,
        batch_rule(environment.world_size),
    ]
    try:
        loaded = load_config(config, overrides or (), rules=rules)
    except RootsError as error:
        # Every rank reads the same files and finds the same problems: the first one tells them.
        speaks = environment.rank == 0
        raise RootsError(*error.lines, exit_code=error.exit_code, speaks=speaks) from error
    if environment.rank == 0:
        tell_notes(loaded)
    name_accelerator()
    from roots.training.assemble import run_training

    raise typer.Exit(int(run_training(loaded, local_rank)))
