"""The reference of the config: every section and field, from the classes that read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from docs.generate.tables import code, table
from roots.config.fields import section_at
from roots.config.run import RunConfig
from roots.config.schema import config_schema
from roots.config.section import Section, is_section

_HEAD = """---
title: Config
---
# Config

Every field of a run. A file says only what differs from these defaults; `extends:` names files
that it adds to, and `section.field=value` on a command line wins over all files.
`roots config show CONFIG` prints the sum, and `roots config schema` gives editors what stands here
as JSON schema.
"""
# What the bounds of JSON schema are called on paper.
_BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}


def config_page() -> str:
    """The page in Markdown."""
    lines = [_HEAD]
    schemas = config_schema()["$defs"]
    for path in section_paths():
        section = section_at(path)
        assert section is not None, f"{'.'.join(path)} is a section"
        lines += [f"## {'.'.join(path)}", "", (section.__doc__ or "").strip(), ""]
        head = ("field", "takes", "default", "meaning")
        lines += [*table(head, _rows(section, path, schemas[section.__name__])), ""]
    return "\n".join(lines)


def section_paths() -> list[tuple[str, ...]]:
    """Where sections stand, each before those inside it; sections of lists by their list's name."""
    return list(_paths(RunConfig, ()))


def _paths(section: Any, here: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is not None:
            yield (*here, name)
            yield from _paths(inner, (*here, name))


def _section_in(annotation: Any) -> type[Section] | None:
    for each in (annotation, *get_args(annotation)):
        if is_section(each):
            return each
    return None


def _rows(
    section: Any, path: tuple[str, ...], schema: dict[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        if is_section(field.annotation):
            continue
        dotted = ".".join([*path, name])
        known = schema["properties"][name]
        default = "" if field.is_required() else code(_spelled(known.get("default")))
        meaning = known.get("description", "")
        # The anchor is the field's name, so that other pages can lead to it.
        yield f'<span id="{dotted}"></span>`{name}`', _takes(known, path, name), default, meaning


def _takes(field: dict[str, Any], path: tuple[str, ...], name: str) -> str:
    """The values of a field: choices, or a type and its bounds."""
    forms = field.get("anyOf", [field])
    return " or ".join(dict.fromkeys(_form(form, path, name) for form in forms))


def _form(form: dict[str, Any], path: tuple[str, ...], name: str) -> str:
    if "enum" in form or "const" in form:
        return ", ".join(code(_spelled(each)) for each in form.get("enum", [form.get("const")]))
    if "$ref" in form:
        return f"[section](#{''.join([*path, name])})"
    kind = form.get("type", "any")
    if kind == "array":
        items = form.get("items") or (form.get("prefixItems") or [{}])[0]
        return f"list of {_takes(items, path, name)}"
    if isinstance(kind, list):
        # Text that needs no quotes, which an editor may take for something else.
        return "string"
    if kind == "null":
        return code("null")
    bounds = [f"{sign} {form[key]:g}" for key, sign in _BOUNDS.items() if key in form]
    return " ".join([str(kind), *([code(", ".join(bounds))] if bounds else [])])


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
