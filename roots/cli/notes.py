"""What a config is accepted with and a user should know: lines on stderr before all else."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from roots.config import RunConfig


def tell_notes(config: RunConfig, *more: str) -> None:
    """Print a line for everything in `config` that works and is hardly meant, and for `more`."""
    from roots.config.vocabulary import vocabulary_notes

    for line in (*vocabulary_notes(config), *more):
        # No reason not to train.
        with suppress(OSError):
            typer.echo(f"roots: note: {line}", err=True)
