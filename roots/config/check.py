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

from roots.config.rules.table import RULES, Rule
from roots.config.run import RunConfig
from roots.errors import RootsError, problem

Location = tuple[int | str, ...]
Tree = dict[str, Any]


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
    refused = {_field_at(item["loc"]) for item in details}
    config = RunConfig.model_validate(_without(tree, refused)).model_copy()
    for location in refused | {_meant(item) for item in details}:
        _remove(config, location)
    return config


def _without(tree: Mapping[str, Any], refused: set[Location], here: Location = ()) -> Tree:
    """A copy of `tree` without the refused keys; sections inside sections are copied too."""
    kept: Tree = {}
    for key, value in tree.items():
        location = (*here, key)
        if location in refused:
            continue
        nested = isinstance(value, Mapping) and _is_section(location)
        kept[key] = _without(value, refused, location) if nested else value
    return kept


def _remove(section: BaseModel, location: Location) -> None:
    """Take the field at `location` below `section` out of it, if it is there."""
    name = str(location[0])
    if len(location) == 1:
        section.__dict__.pop(name, None)
    elif name in section.__dict__:
        # A copy, because sections left out of the tree are the shared defaults.
        inner = section.__dict__[name].model_copy()
        _remove(inner, location[1:])
        section.__dict__[name] = inner


def _field_at(location: Location) -> Location:
    """The part of a location that names a field: what lies in its value belongs to it."""
    for length in range(1, len(location)):
        if not _is_section(location[:length]):
            return location[:length]
    return location


def _is_section(location: Location) -> bool:
    """Whether a section stands there, and not a field, whose value may hold sections in a list."""
    section: type[BaseModel] = RunConfig
    for part in location:
        field = section.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type):
            return False
        if not issubclass(field.annotation, BaseModel):
            return False
        section = field.annotation
    return True


def _meant(item: ErrorDetails) -> Location:
    """The section or field that a refused key stands for: the one with a near name, if any."""
    location = item["loc"]
    near = _near_name(location) if item["type"] == "extra_forbidden" else None
    return _field_at((*location[:-1], near) if near is not None else location)


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
