"""Running a command by its words: what typer cannot make of them is one line, as every mistake."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from roots.errors import RootsError, problem

# The base of the errors of a command line: of typer's own click, or of click itself.
_Mistake: type[Any] = next(
    each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException"
)


def run_by_words(command: Any, words: Sequence[str]) -> int:
    """Run what `words` name of typer's `command`; return its exit code.

    Raises whatever it does, and RootsError for words that it cannot use.
    """
    try:
        code = command(args=list(words), standalone_mode=False)
    except _Mistake as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return int(error.exit_code)
        fix = f"see `{_path(command, words)} --help`"
        raise RootsError(_line(error, words, fix)) from error
    return code if isinstance(code, int) else 0


def _line(error: Any, words: Sequence[str], fix: str) -> str:
    """`--keep-last='0': must be at least 1; see `roots checkpoint prune --help``."""
    parameter = getattr(error, "param", None)
    if parameter is None or type(error).__name__ == "MissingParameter":
        return f"{_sentence(error.format_message())}; {fix}"
    names = [*parameter.opts, *parameter.secondary_opts]
    return problem(max(names, key=len), _value(names, words), _rule(error.message), fix)


def _path(command: Any, words: Sequence[str]) -> str:
    """The command that failed; the program is `roots`, however it was started."""
    names = ["roots"]
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        names.append(word)
    return " ".join(names)


# What a value must be, in the words of those who check it and in those of ROOTS.
_RULES = {
    r"^value error, .* is not one of (.*), ([^,]*)$": r"must be \1 or \2",
    r"^input should be ": "must be ",
    r"greater than or equal to": "at least",
    r"less than or equal to": "at most",
    r"((?<=^must be )|(?<=, )|(?<= or ))'([^']*)'": r"\2",
    r"a valid integer.*": "an integer",
    r"a valid number.*": "a number",
}


def _rule(message: str) -> str:
    rule = _sentence(message)
    rule = rule[:1].lower() + rule[1:]
    for theirs, ours in _RULES.items():
        rule = re.sub(theirs, ours, rule)
    return rule


def _sentence(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def _value(names: Sequence[str], words: Sequence[str]) -> str | None:
    """What `words` give the option; None for an argument, of which the rule tells the value."""
    for word, following in zip(words, (*words[1:], ""), strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("-") and name in names:
            return value if equals else following
    return None
