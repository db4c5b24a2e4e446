"""Reading a config: YAML with `extends:` chains, dotted overrides, all errors at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from roots.config.check import checked_config
from roots.config.fields import annotation_at
from roots.config.rules.table import Rule
from roots.config.run import RunConfig
from roots.config.section import is_null, takes_text
from roots.config.yaml_reader import Scalar, plain, read_yaml, read_yaml_file
from roots.errors import RootsError, problem

Tree = dict[str, Any]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, rules: Sequence[Rule] = ()
) -> RunConfig:
    """Read the YAML at `path`, apply `section.key=value` overrides, validate everything.

    `extends:` names one file or a list of files, relative to the file that says it; later ones win,
    and the file itself wins over all of them. `rules` are what the caller asks of a config besides
    the rules of every config. Raises RootsError with every problem, one line each.
    """
    tree = _read_with_parents(Path(path), ())
    lines = [line for override in overrides for line in _apply_override(tree, override)]
    return checked_config(tree, rules, lines)


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping. Raises RootsError with every problem, one line each."""
    return checked_config(tree)


def dump_config(config: RunConfig) -> str:
    """Write the resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def extends_of(path: Path) -> list[str]:
    """The files that the YAML at `path` extends, as it names them: relative to its own folder."""
    return _parents(path, _read_tree(path).get("extends", []))


def files_of(path: Path) -> Iterator[Path]:
    """The file at `path` and all that it extends, itself first; a file may come again."""
    waiting = [path]
    while waiting:
        path = waiting.pop()
        yield path
        waiting.extend(Path(os.path.normpath(path.parent / each)) for each in extends_of(path))


def _read_with_parents(path: Path, seen: tuple[Path, ...]) -> Tree:
    """Merge the chain of `extends` below `path`, nearest last."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(item.name for item in [*seen, resolved])
        raise RootsError(problem("extends", chain, "must not go in a circle", "remove one link"))
    tree = _read_tree(path)
    # An editor's note of where the schema lies, as in JSON files.
    tree.pop("$schema", None)
    parents = _parents(path, tree.pop("extends", []))
    merged: Tree = {}
    for parent in parents:
        _merge(merged, _read_with_parents(path.parent / parent, (*seen, resolved)))
    _merge(merged, tree)
    return merged


def _parents(path: Path, given: Any) -> list[str]:
    """The names behind `extends`, one or a list of them. Raises RootsError for anything else."""
    names = plain(given)
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fix = "write `extends: base.yaml` or `extends: [a.yaml, b.yaml]`"
        raise RootsError(problem(f"extends of {path}", names, "must name files", fix))
    return names


def _read_tree(path: Path) -> Tree:
    tree = read_yaml_file(path)
    if not isinstance(tree, dict):
        rule = f"must hold sections such as `model:`, not a {type(plain(tree)).__name__}"
        raise RootsError(problem("config file", str(path), rule, "see configs/base.yaml"))
    return tree


def _merge(into: Tree, tree: Mapping[str, Any]) -> None:
    """Merge mappings section by section; lists and scalars replace, an empty section says nothing.

    Nothing of `tree` is shared with `into` afterwards.
    """
    for key, value in tree.items():
        inner = into.get(key)
        if isinstance(value, dict):
            inner = inner if isinstance(inner, dict) else {}
            _merge(inner, value)
            into[key] = inner
        elif not (isinstance(inner, dict) and is_null(value)):
            into[key] = value


def _apply_override(tree: Tree, override: str) -> Iterator[str]:
    """Set one `section.key=value` in `tree`; a text is taken as typed, all else is read as YAML."""
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        yield problem("override", override, "must read section.key=value", "write it that way")
        return
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if child is None or is_null(child):
            child = node[part] = {}
        if not isinstance(child, dict):
            yield problem(key, text, f"`{part}` is a value, not a section", "shorten the path")
            return
        node = child
    try:
        _merge(node, {parts[-1]: _value_of(parts, text)})
    except RootsError as error:
        yield from error.lines


def _value_of(parts: Sequence[str], text: str) -> Any:
    """What `text` says for the field at `parts`. Raises RootsError for half a list or mapping."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if takes_text(annotation_at(parts)) and not quoted:
        return Scalar(text)
    try:
        return read_yaml(text, "override", f"{'.'.join(parts)}={text}")
    except RootsError:
        # Signs that mean something to YAML alone, as in a percentage, are for the field to judge.
        if text[:1] in ("[", "{"):
            raise
        return Scalar(text)
