"""The JSON schema of a config file: of all that the loader accepts, short forms included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from roots.config.run import RunConfig
from roots.config.section import Section, is_section, takes_text

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
# What an unquoted text may be to an editor, which reads 20241130 as a number and `on` as true.
_ANY_TEXT = ["string", "number", "boolean"]
_SOURCES: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "null"},
        {"$ref": "#/$defs/DataSource"},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/DataSource"}]}},
    ]
}
# Forms that validators of the sections accept besides the field's own type.
_SHORT_FORMS: dict[tuple[str, str], Schema] = {
    ("EvaluationConfig", "tasks"): _TEXT,
    ("DataConfig", "train"): _SOURCES,
    ("DataConfig", "valid"): _SOURCES,
    ("DataConfig", "split"): _TEXT,
    ("ModelConfig", "vocab_size"): {"type": "null"},
    ("ParallelConfig", "offload_optimizer"): {"type": "boolean"},
    ("ParallelConfig", "offload_parameters"): {"type": "boolean"},
}
# Where a field that is left out is found out, and its own default is the last resort.
_FOUND_OUT = (("ModelConfig", "vocab_size"),)


def config_schema() -> Schema:
    """The schema of a file, which may extend others, so that no field is required."""
    schema = RunConfig.model_json_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    for section in set(_sections(RunConfig)):
        properties = schema["properties"]
        if section is not RunConfig:
            properties = definitions[section.__name__]["properties"]
        for name, field in section.model_fields.items():
            short = _SHORT_FORMS.get((section.__name__, name))
            if takes_text(field.annotation):
                _widen_text(properties[name])
            if short is not None:
                _accept_too(properties[name], short)
            if (section.__name__, name) in _FOUND_OUT:
                properties[name]["default"] = None
            if is_section(field.annotation):
                _accept_too(properties[name], {"type": "null"})
    names = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
    schema["properties"] = {
        "$schema": {**_TEXT, "description": "where this schema lies, for editors"},
        "extends": {**names, "description": "files that this one adds to, the nearest last"},
        **schema["properties"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    """A section and all that stand in it, in lists too."""
    yield section
    for field in section.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from _sections(inner)


def _widen_text(field: Schema) -> None:
    for form in (field, *field.get("anyOf", ())):
        if form.get("type") == "string":
            form["type"] = _ANY_TEXT


def _accept_too(field: Schema, form: Schema) -> None:
    """Put what a field takes beside one more form; title, default and description stay outside."""
    outside = {key: field.pop(key) for key in ("title", "default", "description") if key in field}
    more = form.get("anyOf", [form])
    # A list of more than its own takes its own as well.
    known = [each["type"] for each in more if "type" in each]
    own = [each for each in field.get("anyOf", [dict(field)]) if each.get("type") not in known]
    field.clear()
    field.update(anyOf=[*own, *more], **outside)
