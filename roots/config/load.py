"""Reading a config: YAML with `extends:` chains, dotted overrides, all errors at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from roots.config.check import checked_config
from roots.config.rules.table import Rule
from roots.config.run import RunConfig
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
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        fix = "write `extends: base.yaml` or `extends: [a.yaml, b.yaml]`"
        raise RootsError(problem(f"extends of {path}", parents, "must name files", fix))
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
    except (yaml.YAMLError, ValueError) as error:
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
    except (yaml.YAMLError, ValueError):  # ValueError: a date that the calendar lacks
        value = text
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            yield problem(key, text, f"`{part}` is a value, not a section", "shorten the path")
            return
        node = child
    node[parts[-1]] = value
