"""Reading a config: YAML with `extends:` chains, dotted overrides, all errors at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from roots.config.run import RunConfig
from roots.errors import RootsError, problem

Tree = dict[str, Any]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML at `path`, apply `section.key=value` overrides, validate everything.

    `extends:` names one file or a list of files, relative to the file that says it; later ones win,
    and the file itself wins over all of them. Raises RootsError with one line per problem.
    """
    tree = _read_with_parents(Path(path), ())
    lines: list[str] = []
    for override in overrides:
        lines.extend(_apply_override(tree, override))
    if lines:
        raise RootsError(*lines)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping. Raises RootsError with every problem, one line each."""
    try:
        config = RunConfig.model_validate(dict(tree))
    except ValidationError as error:
        raise RootsError(*_lines_of(error)) from None
    lines = config.problems()
    if lines:
        raise RootsError(*lines)
    return config


def dump_config(config: RunConfig) -> str:
    """Write the resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_with_parents(path: Path, seen: tuple[Path, ...]) -> Tree:
    """Merge the chain of `extends` below `path`, nearest last."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(item.name for item in [*seen, resolved])
        raise RootsError(problem("extends", chain, "must not go in a circle", "remove one link"))
    tree = _read_yaml(path)
    parents = tree.pop("extends", [])
    if isinstance(parents, str):
        parents = [parents]
    merged: Tree = {}
    for parent in parents:
        _merge(merged, _read_with_parents(path.parent / parent, (*seen, resolved)))
    _merge(merged, tree)
    return merged


def _read_yaml(path: Path) -> Tree:
    if not path.is_file():
        fix = "give the path of a YAML file, for example configs/model/tiny.yaml"
        raise RootsError(problem("config file", str(path), "does not exist", fix))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RootsError(
            problem("config file", str(path), f"is not YAML ({reason})", "mend that line")
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        rule = f"must hold sections such as `model:`, not a {type(tree).__name__}"
        raise RootsError(problem("config file", str(path), rule, "see configs/base.yaml"))
    return tree


def _merge(into: Tree, tree: Mapping[str, Any]) -> None:
    """Merge mappings section by section; lists and scalars replace."""
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, dict) else value


def _apply_override(tree: Tree, override: str) -> Iterator[str]:
    """Set one `section.key=value` in `tree`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        yield problem("override", override, "must read section.key=value", "write it that way")
        return
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            yield problem(key, text, f"`{part}` is a value, not a section", "shorten the path")
            return
        node = child
    node[parts[-1]] = value


def _lines_of(error: ValidationError) -> Iterator[str]:
    """Turn pydantic's report into one line per problem: path, value, rule, fix."""
    for item in error.errors():
        location = item["loc"]
        path = _dotted(location)
        if item["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            fix = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
            yield problem(path, item["input"], "unknown key", fix)
            continue
        rule = item["msg"][0].lower() + item["msg"][1:]
        yield problem(path, item["input"], rule, _help(location))


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section = _section_at(location)
    return list(section.model_fields) if section is not None else []


def _help(location: tuple[int | str, ...]) -> str:
    """The field's own line of help and its default serve as the fix."""
    section = _section_at(location[:-1])
    field = section.model_fields.get(str(location[-1])) if section is not None else None
    if field is None:
        return "see configs/base.yaml"
    default = (
        "" if field.is_required() or field.default_factory else f" (default {field.default!r})"
    )
    return f"it is: {field.description}{default}"


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The section class at a location of the tree, None inside lists."""
    section: type[BaseModel] = RunConfig
    for part in location:
        field = section.model_fields.get(str(part))
        annotation = field.annotation if field is not None else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    return section
