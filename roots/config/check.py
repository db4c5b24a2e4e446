"""From a nested mapping to a config, with every problem at once: bounds, unknown keys and rules.

A field that is refused, or whose name a refused key nearly spells, has no known value. It is taken
out of the config on which the rules run, so that a rule which asks for it stops there: what the
remaining fields violate is reported, and nothing is reported about a value that nobody wrote.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from roots.config.rules import RULES, Rule
from roots.config.run import RunConfig
from roots.errors import RootsError, problem

Location = tuple[int | str, ...]


def checked_config(
    tree: Mapping[str, Any], rules: Sequence[Rule] = (), lines: Sequence[str] = ()
) -> RunConfig:
    """Validate `tree` by its fields' bounds, the rules of every config and `rules`.

    Raises RootsError with all problems, one line each, after the `lines` already found.
    """
    found = list(lines)
    complete = True
    try:
        config = RunConfig.model_validate(dict(tree))
    except ValidationError as error:
        details = error.errors()
        found.extend(_line_of(item) for item in details)
        config, complete = _sound_part(tree, details), False
    for rule in (*RULES, *rules):
        found.extend(_violations(rule, config, complete))
    if found:
        raise RootsError(*dict.fromkeys(found))
    return config


def _violations(rule: Rule, config: RunConfig, complete: bool) -> Iterator[str]:
    """The lines of one rule, up to where it asks for a field that `config` lacks."""
    try:
        yield from rule(config)
    except AttributeError:
        # A missing field is expected of an incomplete config alone; otherwise it is our bug.
        if complete:
            raise


def _sound_part(tree: Mapping[str, Any], details: Sequence[ErrorDetails]) -> RunConfig:
    """The config of what was not refused; reading any other field raises AttributeError."""
    refused = {item["loc"][:2] for item in details}
    kept = {
        name: {key: value for key, value in dict(section).items() if (name, key) not in refused}
        for name, section in tree.items()
        if (name,) not in refused
    }
    config = RunConfig.model_validate(kept).model_copy()
    for location in refused | {_meant(item) for item in details}:
        name = str(location[0])
        if len(location) == 1:
            config.__dict__.pop(name, None)
        elif name in config.__dict__:
            # A copy, because sections left out of the tree are the shared defaults.
            section = config.__dict__[name].model_copy()
            section.__dict__.pop(str(location[1]), None)
            config.__dict__[name] = section
    return config


def _meant(item: ErrorDetails) -> Location:
    """The section or field that a refused key stands for: the one with a near name, if any."""
    location = item["loc"]
    near = _near_name(location) if item["type"] == "extra_forbidden" else None
    return ((*location[:-1], near) if near is not None else location)[:2]


def _line_of(item: ErrorDetails) -> str:
    """Turn one item of pydantic's report into a line: path, value, rule, fix."""
    location = item["loc"]
    path = _dotted(location)
    if item["type"] == "extra_forbidden":
        near = _near_name(location)
        fix = f"did you mean {near}?" if near else f"use one of {', '.join(_known_keys(location))}"
        return problem(path, item["input"], "unknown key", fix)
    rule = item["msg"][0].lower() + item["msg"][1:]
    return problem(path, item["input"], rule, _help(location))


def _dotted(location: Location) -> str:
    """Spell a location as error lines do: data.train[0].prefix."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _known_keys(location: Location) -> list[str]:
    """The names that could stand at the last place of a location."""
    section = _section_at(location[:-1])
    return list(section.model_fields) if section is not None else []


def _near_name(location: Location) -> str | None:
    close = difflib.get_close_matches(str(location[-1]), _known_keys(location), n=1)
    return close[0] if close else None


def _help(location: Location) -> str:
    """The field's own line of help and its default serve as the fix."""
    section = _section_at(location[:-1])
    field = section.model_fields.get(str(location[-1])) if section is not None else None
    if field is None or not field.description:
        return "see configs/base.yaml"
    default = (
        "" if field.is_required() or field.default_factory else f" (default {field.default!r})"
    )
    return f"it is: {field.description}{default}"


def _section_at(location: Location) -> type[BaseModel] | None:
    """The section class at a location of the tree; that of the items for a list of sections."""
    section: type[BaseModel] = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        annotation = field.annotation if field is not None else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                section = candidate
                break
        else:
            return None
    return section
