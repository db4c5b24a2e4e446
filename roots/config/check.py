"""From a nested mapping to a config, with every problem at once: bounds, unknown keys and rules.

A field that is refused, or whose name a refused key nearly spells, has no known value. It is taken
out of the config on which the rules run, so that a rule which asks for it stops there: what the
remaining fields violate is reported, and nothing is reported about a value that nobody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from roots.config.fields import meant_by, section_at, suggestion
from roots.config.rules.table import RULES, Rule
from roots.config.run import RunConfig
from roots.config.vocabulary import with_vocabulary
from roots.config.yaml_reader import plain
from roots.errors import RootsError, problem

Location = tuple[int | str, ...]
Tree = dict[str, Any]

_LONGEST_SHOWN = 200
_NOT_A_NUMBER = ("int_parsing", "float_parsing")
_UNITS = {
    "": Decimal(1),
    "%": Decimal("0.01"),
    **{unit: Decimal(10) ** power for unit, power in zip("kmbgt", (3, 6, 9, 9, 12), strict=True)},
}
_WITH_UNIT = re.compile(r"([-+]?)(\d[\d,. ]{0,30}) ?([%kKmMbBgGtT]?)")
_GROUPED = re.compile(r"[1-9]\d{0,2}([, ]\d{3})+(\.\d+)?")
_DECIMAL = re.compile(r"\d+([.,]\d+)?")


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
    try:
        config = with_vocabulary(config)
    except AttributeError:
        if complete:
            raise
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
    for location in refused | {place for item in details for place in _meant(item)}:
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


def _meant(item: ErrorDetails) -> list[Location]:
    """The fields and sections that a refused key may stand for: nothing is known of them."""
    location = item["loc"]
    if item["type"] != "extra_forbidden":
        return [_field_at(location)]
    return [_field_at(place) for place in (location, *meant_by(location, item["input"]))]


def _line_of(item: ErrorDetails) -> str:
    """Turn one item of pydantic's report into a line: path, value, rule, fix."""
    location = item["loc"]
    path = _dotted(location)
    value = _shortened(plain(item["input"]))
    if item["type"] == "extra_forbidden":
        return problem(path, value, "unknown key", suggestion(location, item["input"]))
    rule = item["msg"][0].lower() + item["msg"][1:]
    number = _plain_number(value) if item["type"] in _NOT_A_NUMBER else None
    if number is not None and "." in number and item["type"] == "int_parsing":
        number = None
    fix = _help(location) if number is None else f"write {number}; {_help(location)}"
    return problem(path, value, rule, fix)


def _shortened(value: Any) -> Any:
    """`value`, or the beginning of a text that would fill a screen."""
    text = value if isinstance(value, str) else repr(value)
    return value if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _plain_number(value: Any) -> str | None:
    """The number that a text with a unit or separators stands for: 1k, 1,000, 5%, 1.5M."""
    match = _WITH_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    sign, digits, unit = match.groups()
    if _GROUPED.fullmatch(digits):
        digits = digits.replace(",", "").replace(" ", "")
    elif not _DECIMAL.fullmatch(digits):
        return None
    number = Decimal(digits.replace(",", "."))
    return f"{sign}{(number * _UNITS[unit.lower()]).normalize():f}"


def _dotted(location: Location) -> str:
    """Spell a location as error lines do: data.train[0].prefix."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _help(location: Location) -> str:
    """The field's own line of help and its default serve as the fix."""
    section = section_at(location[:-1])
    field = section.model_fields.get(str(location[-1])) if section is not None else None
    if field is None or not field.description:
        return "see configs/base.yaml"
    if field.is_required() or field.default_factory:
        return f"give {field.description}"
    return f"give {field.description} (default {_as_in_yaml(field.default)})"


def _as_in_yaml(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)
