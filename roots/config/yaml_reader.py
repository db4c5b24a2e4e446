"""The one reader of YAML: plain data alone, bounded in size, and scalars that keep their text.

YAML turns `20241130` into a number, `on` into true and `007` into 7 before anyone has asked which
field they are for. Here an unquoted scalar stays text that knows its value (`Scalar`); a section
takes the text where a field is text, and the value elsewhere. A key that stands twice is refused,
and so is a file whose aliases or nesting would unfold into more than any config holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from roots.errors import RootsError, problem

MAX_BYTES = 2**20
MAX_DEPTH = 20
# Values of the whole tree, those behind an alias once for each of its uses.
MAX_VALUES = 50_000
# Characters of a number in base ten: Python refuses to read, or show, much longer ones.
_MAX_DIGITS = 400

_NULL = re.compile(r"|~|null|Null|NULL|None")
_TRUE = re.compile(r"true|True|TRUE|yes|Yes|YES|on|On|ON")
_FALSE = re.compile(r"false|False|FALSE|no|No|NO|off|Off|OFF")
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_BASED = re.compile(r"0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+|\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {
    f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp", "value")
}
_MERGE_TAG = f"{_TAG}merge"


class Scalar(str):
    """The text of an unquoted scalar, as it was typed."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """What the text means where no text is asked for: null, a truth value, a number, itself.

        Numbers are decimal, as in YAML 1.2: 010 is ten and 1:30 is no number. One with an exponent
        stays text, which a field of numbers reads.
        """
        text = str(self)
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
            return _TRUE.fullmatch(text) is not None
        if len(text) > _MAX_DIGITS:
            return text
        try:
            if _INTEGER.fullmatch(text):
                return int(text.replace("_", ""))
            if _BASED.fullmatch(text):
                return int(text.replace("_", ""), 0)
            if _FLOAT.fullmatch(text):
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return text
        return text


def plain(tree: Any) -> Any:
    """`tree` with the values of its scalars in place of their texts."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return tree


def read_yaml_file(path: Path) -> Any:
    """The tree of a config file; an empty file is an empty mapping.

    Raises RootsError for a file that cannot be read, is no YAML or is beyond the bounds.
    """
    name = str(path)
    if not path.is_file():
        rule = "is a folder" if path.is_dir() else "does not exist"
        fix = "give the path of a YAML file, for example configs/model/tiny.yaml"
        fix += "; `roots config list` and `roots config copy NAME` bring those of ROOTS"
        raise RootsError(problem("config file", name, rule, fix))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise RootsError(problem("config file", name, rule, "see its permissions")) from None
    if len(content) > MAX_BYTES:
        rule = f"has more than {MAX_BYTES} bytes, which no config needs"
        raise RootsError(problem("config file", name, rule, "give the path of a YAML file"))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        rule = f"is not YAML ({error})"
        raise RootsError(problem("config file", name, rule, "save it as UTF-8")) from None
    tree = read_yaml(text, "config file", name)
    return {} if isinstance(tree, Scalar) and tree.value is None else tree


def read_yaml(text: str, subject: str, name: str) -> Any:
    """Mappings, lists, strings (quoted) and Scalars (not quoted) of one YAML document.

    Keys are text. Raises RootsError, which speaks of `subject` called `name`, for what is no YAML,
    has a key twice, a tag of its own, or more than MAX_DEPTH levels or MAX_VALUES values.
    """
    try:
        node = _BoundedLoader(text).get_single_node()
        if node is None:
            return Scalar("")
        lines = [problem(subject, name, *found) for found in _doubled_keys(node)]
        if lines:
            raise RootsError(*dict.fromkeys(lines))
        return _tree(node)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace(' in "<unicode string>",', " in").split())
        rule = f"is not YAML ({reason})"
        raise RootsError(problem(subject, name, rule, "mend that line")) from None
    except _BeyondBounds as error:
        rule = f"{error}, which no config needs"
        raise RootsError(problem(subject, name, rule, "write the values out")) from None


class _BeyondBounds(Exception):
    """A document has more levels or values than the bounds allow."""


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes, and counts them while it does; aliases count as often as they are used."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node, or find that of an alias. Raises _BeyondBounds."""
        before = self._values
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _BeyondBounds(f"has more than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise _BeyondBounds("has an alias inside what it stands for")
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            raise _BeyondBounds(f"has more than {MAX_VALUES} values, aliases unfolded")
        return node


def _doubled_keys(node: yaml.Node, path: str = "") -> list[tuple[str, str]]:
    """Rule and fix for every key that stands twice in one mapping, with both lines."""
    found: list[tuple[str, str]] = []
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found.extend(_doubled_keys(item, path))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = f"{path}.{key.value}".removeprefix(".") if _is_scalar(key) else path
            line = key.start_mark.line + 1
            if _is_scalar(key) and name in lines:
                where = f"lines {lines[name]} and {line}"
                if lines[name] == line:
                    where = f"line {line}"
                found.append((f"names {name} twice, in {where}", "remove one of them"))
            lines[name] = line
            found.extend(_doubled_keys(value, name))
    return found


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _tree(node: yaml.Node) -> Any:
    """Plain data of a composed node."""
    if isinstance(node, yaml.MappingNode):
        if node.tag != f"{_TAG}map":
            raise _unknown_tag(node)
        # `<<: *defaults` is YAML's own way to merge; it fills in what the mapping does not name.
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _MERGE_TAG:
                merged = {**_merged(value), **merged}
            elif not isinstance(key, yaml.ScalarNode) or key.tag not in _SCALAR_TAGS:
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key.start_mark
                )
            else:
                own[key.value] = _tree(value)
        return {**merged, **own}
    if isinstance(node, yaml.SequenceNode):
        if node.tag != f"{_TAG}seq":
            raise _unknown_tag(node)
        return [_tree(item) for item in node.value]
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALAR_TAGS:
        raise _unknown_tag(node)
    return Scalar(node.value) if node.style is None else str(node.value)


def _merged(node: yaml.Node) -> dict[str, Any]:
    """What stands behind `<<`: a mapping, or a list of them of which the first wins."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    merged: dict[str, Any] = {}
    for each in reversed(nodes):
        if not isinstance(each, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(
                None, None, "`<<` must name a mapping", each.start_mark
            )
        merged.update(_tree(each))
    return merged


def _unknown_tag(node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(
        None, None, f"the tag {node.tag!r} has no meaning in a config", node.start_mark
    )
