"""The commands of `roots audit`."""

from __future__ import annotations

import typer

from roots.cli.audit.bias import bias
from roots.cli.audit.canaries import canaries
from roots.cli.audit.membership import membership
from roots.cli.audit.memorisation import memorisation
from roots.cli.options.ranks import refuse_ranks

audit_app = typer.Typer(no_args_is_help=True)


@audit_app.callback()
def audit() -> None:
    """What a model keeps of its corpus, and what it prefers without a reason."""
    refuse_ranks("audits")


audit_app.command()(memorisation)
audit_app.command()(canaries)
audit_app.command()(membership)
audit_app.command()(bias)
