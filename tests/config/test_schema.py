"""The JSON schema takes what the loader takes: parents, short forms, an editor's own key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.config import load_config
from roots.config.fields import section_at
from roots.config.run import RunConfig
from roots.config.schema import config_schema
from roots.config.yaml_reader import plain, read_yaml_file
from tests.helpers.sources import ROOT, configs, name_of

KINDS = {
    "string": str,
    "null": type(None),
    "boolean": bool,
    "array": list,
    "object": dict,
    "integer": int,
    "number": (int, float),
}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Whether a value fits a schema, by the few keywords that ours has for types and names."""
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        return any(accepts(form, value, root) for form in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if schema["type"] in ("number", "integer") and isinstance(value, str) and value[:1].isdigit():
        # A number with an exponent, which YAML 1.1 alone takes for text.
        value = float(value)
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(
        isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in kinds
    ):
        return False
    if isinstance(value, list):
        forms = schema.get("prefixItems", [schema.get("items")] * len(value))
        return all(accepts(form, item, root) for form, item in zip(forms, value, strict=False))
    if isinstance(value, dict):
        properties = schema["properties"]
        return all(
            key in properties and accepts(properties[key], inner, root)
            for key, inner in value.items()
        )
    return True


@pytest.mark.parametrize("path", configs(), ids=name_of)
def test_schema_accepts_every_config(path: Path) -> None:
    schema = config_schema()
    assert accepts(schema, plain(read_yaml_file(path)), schema)


@pytest.mark.parametrize(
    "text",
    [
        "$schema: roots.json\nextends: base.yaml",
        "extends: [base.yaml]\nmodel:\ntraining: {steps: 3}",
        "data: {train: a, valid: [a, {prefix: b, weight: 2}]}",
        "data: {train: {prefix: a}, split: '8,1,1'}",
        "run: {name: 20241130, directory: on}\ndata: {tokenizer: 7}",
        "parallel: {offload_optimizer: true}\nmodel: {vocab_size: null}",
    ],
)
def test_schema_and_loader_accept_the_same_short_forms(text: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("{}\n", encoding="utf-8")
    path = tmp_path / "c.yaml"
    path.write_text(text + "\n", encoding="utf-8")
    assert load_config(path)
    schema = config_schema()
    assert accepts(schema, plain(read_yaml_file(path)), schema)


@pytest.mark.parametrize(
    "tree",
    [{"modle": {}}, {"training": {"steps": "x"}}, {"model": {"norm": "no"}}, {"extends": 5}],
)
def test_schema_refuses_what_the_loader_refuses(tree: dict[str, Any]) -> None:
    schema = config_schema()
    assert not accepts(schema, tree, schema)


def test_base_spells_the_words_that_a_field_may_be() -> None:
    comments: dict[str, str] = {}
    section, above = "", ""
    for line in (ROOT / "configs" / "base.yaml").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if line.lstrip().startswith("#"):
            above += f" {line}"
        elif words and words[0].endswith(":"):
            depth = (len(line) - len(line.lstrip())) // 2
            section = ".".join([*section.split(".")[:depth], words[0][:-1]])
            comments[section], above = above, ""
    missing = [
        f"{name}: {word}"
        for name, words in _choices(RunConfig, ())
        for word in words
        if word not in comments[name]
    ]
    assert not missing


def _choices(section: Any, here: tuple[str, ...]) -> Any:
    """The dotted names of the fields that are one of a few words, with those words."""
    for name, field in section.model_fields.items():
        inner = section_at((*here, name))
        if inner is not None and isinstance(field.annotation, type):
            yield from _choices(inner, (*here, name))
        words = [
            word
            for part in (field.annotation, *getattr(field.annotation, "__args__", ()))
            for word in getattr(part, "__args__", ())
            if isinstance(word, str)
        ]
        words += [w for w in getattr(field.annotation, "__args__", ()) if isinstance(w, str)]
        if words:
            yield ".".join((*here, name)), list(dict.fromkeys(words))
