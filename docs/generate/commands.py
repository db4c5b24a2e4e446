"""The reference of the command line: every command and option, from the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer

from docs.generate.tables import code, table
from roots.cli.main import app

_HEAD = """---
title: Commands
---
# Commands

`--debug` before or after any command shows the traceback of an error; `--help` is what stands
here. [Exit codes](../exit-codes.md) are the same for all.
"""


def commands_page() -> str:
    """The page in Markdown."""
    lines = [_HEAD]
    for name, command in commands():
        lines += [f"## {name}", "", _text(command.help), ""]
        lines += ["```text", _usage(name, command), "```", ""]
        rows = list(_rows(command))
        if rows:
            lines += [*table(("", "takes", "default", "meaning"), rows), ""]
    return "\n".join(lines)


def commands() -> list[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    return list(_commands("roots", typer.main.get_command(app)))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, each in inner.items():
        yield from _commands(f"{name} {word}", each)


def shown_parameters(command: Any) -> list[Any]:
    """Arguments, then options, without hidden ones and --help."""
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    return sorted(shown, key=lambda each: each.param_type_name != "argument")


def _usage(name: str, command: Any) -> str:
    words = [name, "[OPTIONS]"]
    for each in shown_parameters(command):
        if each.param_type_name == "argument":
            words.append(_argument(each))
        elif each.required:
            words.append(f"{each.opts[0]} {each.name.upper()}")
    return " ".join(words)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    if parameter.nargs == -1 and not name.endswith("..."):
        name += "..."
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _rows(command: Any) -> Iterator[tuple[str, str, str, str]]:
    types = get_type_hints(command.callback)
    for each in shown_parameters(command):
        takes = _takes(types[each.name], each)
        if each.param_type_name == "argument":
            yield code(_argument(each)), takes, _default(each), _text(each.help)
        else:
            names = ", ".join(map(code, [*each.opts, *each.secondary_opts]))
            yield names, "" if each.is_flag else takes, _default(each), _text(each.help)


def _takes(annotation: Any, parameter: Any) -> str:
    """What stands for a value, by the annotation of the function behind the command."""
    forms = [each for each in get_args(annotation) if each is not type(None)]
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(code(each.value) for each in annotation)
    if forms:
        shown = _takes(forms[0], parameter)
        return f"{shown}, repeatable" if origin is list else shown
    words = {int: "integer", float: "number", str: "text", Path: "path"}
    bounds = [
        f"{sign} {bound}"
        for sign, bound in ((">=", parameter.min), ("<=", parameter.max))
        if bound is not None
    ]
    return " ".join([words.get(annotation, annotation.__name__), *map(code, bounds)])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value in ((), "") or callable(value):
        return ""
    return code("on" if value is True else getattr(value, "value", value))


def _text(text: str | None) -> str:
    return " ".join((text or "").split())
