"""Options that were given and would do nothing: each is one line of an error, not silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import typer

from roots.errors import RootsError, problem


def refuse_useless(context: typer.Context, names: Sequence[str], rule: str, fix: str) -> None:
    """Raise RootsError with the problems of `useless_options`, if there are any."""
    if lines := list(useless_options(context, names, rule, fix)):
        raise RootsError(*lines)


def useless_options(
    context: typer.Context, names: Sequence[str], rule: str, fix: str
) -> Iterator[str]:
    """A problem for each parameter of `names` that stands on the command line, in their order.

    One given with the value of its default counts too: whoever writes it expects it to matter.
    """
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in names:
        source = context.get_parameter_source(name)
        # By its name, because typer comes with or without a click of its own.
        if source is not None and source.name == "COMMANDLINE":
            value = context.params[name]
            if isinstance(value, (list, tuple)):
                value = ", ".join(map(str, value))
            # A flag has no value to show, and a path is shown as it was written.
            shown = value if isinstance(value, (int, float)) else str(value)
            yield problem(options[name], None if value is True else shown, rule, fix)
