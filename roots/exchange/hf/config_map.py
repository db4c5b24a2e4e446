"""How keys of a config.json and fields of `model` correspond: data, read in both directions.

An entry reads some keys of config.json into fields of `model`, and writes them back. What either
side cannot express is a `Refusal`, one line each, and all of them are reported at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from roots.config.model import ModelConfig

Tree = Mapping[str, Any]
Fields = dict[str, Any]


# Keys whose null is a value of its own, and not what a missing key means.
NULL_IS_A_VALUE = frozenset({"head_dim", "num_key_value_heads", "sliding_window"})


class AskedKeys(Mapping[str, Any]):
    """A config.json that remembers which of its keys were asked for."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.keys_asked_for: set[str] = set()
        self.last_key = ""

    def __getitem__(self, key: str) -> Any:
        self.keys_asked_for.add(key)
        self.last_key = key
        return self._tree[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)


class Refusal(Exception):
    """A value that the other side has no field for: the key, its value, the rule, the fix."""

    def __init__(self, key: str, value: object, rule: str, fix: str) -> None:
        super().__init__(f"{key}={value!r}: {rule}; {fix}")
        self.key, self.value, self.rule, self.fix = key, value, rule, fix


def shown(value: object) -> str:
    """A value as config.yaml has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def trained_with(field: str, value: object) -> str:
    """The fix of a field: weights fit another value of it only after training with that."""
    return f"train with {field}={shown(value)} to export the model"


class Entry(Protocol):
    """Some keys of config.json and the fields of `model` that they set."""

    @property
    def ours(self) -> tuple[str, ...]:
        """The fields of `model`, those of a section as section.field or all by its name."""

    def read(self, tree: Tree) -> Fields:
        """Fields of `model` from config.json. Raises Refusal."""

    def write(self, model: ModelConfig) -> Fields:
        """Keys of config.json from `model`. Raises Refusal."""


@dataclass(frozen=True)
class Equal:
    """A key and a field of the same value.

    default:  what a config.json without the key means
    resolved: the attribute of `model` that has the value where the field may be null
    """

    key: str
    field: str
    default: Any
    resolved: str = ""

    @property
    def ours(self) -> tuple[str, ...]:
        """The one field."""
        return (self.field,)

    def read(self, tree: Tree) -> Fields:
        """Copy the value; a missing key means the default."""
        return {self.field: tree.get(self.key, self.default)}

    def write(self, model: ModelConfig) -> Fields:
        """Copy the resolved value."""
        return {self.key: getattr(model, self.resolved or self.field)}


@dataclass(frozen=True)
class Choice:
    """A key whose values have other names than the field's: (theirs, ours), the first of equals."""

    key: str
    field: str
    values: tuple[tuple[Any, Any], ...]
    default: Any

    @property
    def ours(self) -> tuple[str, ...]:
        """The one field."""
        return (self.field,)

    def read(self, tree: Tree) -> Fields:
        """Translate the value."""
        value = tree.get(self.key, self.default)
        for theirs, ours in self.values:
            if theirs == value:
                return {self.field: ours}
        known = ", ".join(str(theirs) for theirs, _ in self.values)
        raise Refusal(self.key, value, f"must be one of {known}", _NO_SUCH_MODEL)

    def write(self, model: ModelConfig) -> Fields:
        """Translate back."""
        value = getattr(model, self.field)
        for theirs, ours in self.values:
            if ours == value:
                return {self.key: theirs}
        known = dict.fromkeys(str(ours) for _, ours in self.values)
        name, rule = f"model.{self.field}", f"must be {' or '.join(known)}"
        raise Refusal(name, value, rule, trained_with(name, next(iter(known))))


@dataclass(frozen=True)
class Fixed:
    """A key that must have one value, since ROOTS has no field for another."""

    key: str
    value: Any

    @property
    def ours(self) -> tuple[str, ...]:
        """No field."""
        return ()

    def read(self, tree: Tree) -> Fields:
        """Check the value; a missing key means the one value."""
        value = tree.get(self.key, self.value)
        if value != self.value:
            raise Refusal(self.key, value, f"must be {self.value}", _NO_SUCH_MODEL)
        return {}

    def write(self, model: ModelConfig) -> Fields:
        """Say the value."""
        return {self.key: self.value}


@dataclass(frozen=True)
class Alike:
    """Keys that must all have the value of one field; missing ones have `default`."""

    keys: tuple[str, ...]
    field: str
    default: Any

    @property
    def ours(self) -> tuple[str, ...]:
        """The one field."""
        return (self.field,)

    def read(self, tree: Tree) -> Fields:
        """The common value."""
        first, *others = self.keys
        value = tree.get(first, self.default)
        for key in others:
            if tree.get(key, self.default) != value:
                found = tree.get(key, self.default)
                raise Refusal(key, found, f"must equal {first}={value}", _NO_SUCH_MODEL)
        return {self.field: value}

    def write(self, model: ModelConfig) -> Fields:
        """The same value under every key."""
        return dict.fromkeys(self.keys, getattr(model, self.field))


_NO_SUCH_MODEL = "ROOTS has no field for another value, so this model cannot be imported"
