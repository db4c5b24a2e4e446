"""`roots config`: what a config resolves to, and those that come along. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.notes import tell_notes
from roots.cli.options.trained import AsJson

if TYPE_CHECKING:
    from roots.config.rules.table import Rule

config_app = typer.Typer(
    help="Show what a config resolves to; list and copy those that come with ROOTS.",
    no_args_is_help=True,
)

ConfigPath = Annotated[Path, typer.Argument(help="YAML file of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]...", help="Values that win over the file's."),
]


def _rules() -> list[Rule]:
    """What is asked of a run besides the rules of every config, and does not ask for its data."""
    from roots.config.rules.checkpoint import mirror_outlives_the_runs
    from roots.planner.stages import balanced_stages_have_experts

    return [balanced_stages_have_experts, mirror_outlives_the_runs]


@config_app.command()
def show(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False,
) -> None:
    """Print the resolved config: every field, with the values this run would have."""
    from roots.config import dump_config, load_config

    loaded = load_config(config, overrides or (), rules=_rules())
    tell_notes(loaded)
    text = json.dumps(loaded.model_dump(mode="json"), indent=2) if as_json else dump_config(loaded)
    typer.echo(text.rstrip("\n"))


@config_app.command()
def schema(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file to check; the schema is the same without it.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print the JSON schema of a config, for editors."""
    from roots.config import load_config
    from roots.config.schema import config_schema

    if config is not None:
        load_config(config, overrides or (), rules=_rules())
    typer.echo(json.dumps(config_schema(), indent=2))


@config_app.command()
def deepspeed(
    config: ConfigPath,
    overrides: Overrides = None,
    world_size: Annotated[
        int, typer.Option(min=0, help="Ranks; 0: the fewest the layout allows.")
    ] = 0,
) -> None:
    """Print the DeepSpeed JSON that ROOTS derives from a config."""
    from roots.config import load_config, plan_batch
    from roots.config.rules.batch import batch_rule, fewest_ranks
    from roots.training.engine.deepspeed_json import deepspeed_config

    rules = [batch_rule(world_size), *_rules()]
    loaded = load_config(config, overrides or (), rules=rules)
    tell_notes(loaded)
    ranks = world_size or fewest_ranks(loaded)
    typer.echo(json.dumps(deepspeed_config(loaded, plan_batch(loaded, ranks)), indent=2))


@config_app.command("list")
def list_configs(
    as_json: AsJson = False,
) -> None:
    """Print the names of the configs that come with ROOTS, and what each is for."""
    from roots.cli.shipped import config_names

    names = config_names()
    if as_json:
        typer.echo(json.dumps(names, indent=2))
        return
    for name, line in names.items():
        typer.echo(f"{name:{max(map(len, names))}}  {line}")


@config_app.command()
def copy(
    name: Annotated[str, typer.Argument(help="Name of `roots config list`; or `launch`.")],
    to: Annotated[Path, typer.Option(help="Folder that gets configs/ or launch/.")] = Path(),
) -> None:
    """Copy a config of ROOTS and what it extends, or the launch scripts, to edit them."""
    from roots.cli.shipped import copy_shipped

    for path in copy_shipped(name, to):
        typer.echo(str(path))
