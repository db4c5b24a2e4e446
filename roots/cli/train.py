"""`roots train`: one rank of a training run; launch/ starts as many as the layout needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.notes import tell_notes
from roots.cli.options.ranks import told_once
from roots.errors import ExitCode

if TYPE_CHECKING:
    from roots.training.signals import StopSignals


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Values that win over the file's."),
    ] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = -1,
) -> None:
    """Train the model that CONFIG describes; start several ranks with launch/local.sh."""
    from roots.training.signals import StopSignals

    # Before torch is imported and all else that takes time: what comes then stops the loop, too.
    with StopSignals() as signals:
        raise typer.Exit(int(_train(config, overrides or (), local_rank, signals)))


def _train(
    config: Path, overrides: Sequence[str], local_rank: int, signals: StopSignals
) -> ExitCode:
    from roots.config import load_config
    from roots.config.rules.batch import batch_rule
    from roots.config.rules.table import TRAINING_RULES
    from roots.device import launch_environment, name_accelerator, process_start
    from roots.planner.stages import balanced_stages_have_experts
    from roots.training.ownership import open_run

    environment = launch_environment()
    rules = [
        *TRAINING_RULES,
        balanced_stages_have_experts,
        batch_rule(environment.world_size),
    ]
    # Every rank reads the same files.
    with told_once():
        loaded = load_config(config, overrides, rules=rules)
    if environment.rank == 0:
        tell_notes(loaded)
    with open_run(loaded, environment.rank, process_start()) as opening:
        name_accelerator()
        from roots.training.assemble import run_training

        return run_training(loaded, local_rank, signals, opening)
