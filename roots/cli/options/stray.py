"""Values of the config that were written as options: told with the word to write instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperGroup

from roots.cli.options.ranks import speaks
from roots.errors import RootsError, problem

# Parameters that hold a config's overrides, and so say that a command takes any.
_OVERRIDES = "overrides"


def refuse_stray_options(root: Any, words: Sequence[str]) -> None:
    """Raise RootsError for `--training.steps=5` and its like, a line each; the rest is click's.

    Only commands that take a config are looked at, and only options that they do not have.
    Commands are typer's, with a click of its own or without.
    """
    command, rest = _command(root, words)
    if not any(parameter.name == _OVERRIDES for parameter in command.params):
        return
    lines = [
        problem(word, None, "is no option; values of the config have no dashes", f"write {fix}")
        for word, fix in _stray(command, rest)
    ]
    if lines:
        raise RootsError(*lines, speaks=speaks())


def _command(root: Any, words: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """The command that `words` name, and the words behind its name."""
    command = root
    for number, word in enumerate(words):
        if not isinstance(command, TyperGroup):
            return command, words[number:]
        if not word.startswith("-"):
            found = command.commands.get(word)
            if found is None:
                return command, ()
            command = found
    return command, ()


def _stray(command: Any, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every word that is no option of `command` but names a field, and what was meant."""
    from roots.config.fields import fields_named

    options = {name: each for each in command.params for name in (*each.opts, *each.secondary_opts)}
    following = iter((*words[1:], ""))
    for word in words:
        behind = next(following)
        if word == "--":
            return
        name, equals, value = word.partition("=")
        known = options.get(name)
        if known is not None and not equals and not getattr(known, "is_flag", False):
            # The next word is the option's own, whatever it looks like.
            continue
        if known is not None or not name.startswith("-"):
            continue
        fields = fields_named(name.lstrip("-"))
        if not equals:
            value = "..." if not behind or behind.startswith("--") or "=" in behind else behind
        if fields:
            yield word, " or ".join(f"{field}={value}" for field in fields)
