"""What a checkpoint knows of the data of its run: which phase of them, since when, what was read.

The key `data` of a manifest; checkpoints without one are of a ROOTS that did not write any:

    {"phase": 0, "first_sample": 0, "tokenizer": fingerprint or null,
     "sources": [{"prefix": path, "weight": 1.0,
                  "sides": [{"documents": n, "tokens": n, "digest": hex}]}]}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SideRecord:
    """What tells one dataset of tokens from another: counts, and a digest of parts of its files."""

    documents: int
    tokens: int
    digest: str


@dataclass(frozen=True)
class SourceRecord:
    """One source of a blend. `sides`: one of texts; of pairs two, what is read and written."""

    prefix: str
    weight: float
    sides: tuple[SideRecord, ...]

    @property
    def documents(self) -> int:
        """Documents, or pairs of them."""
        return self.sides[0].documents

    @property
    def tokens(self) -> int:
        """Tokens of all sides."""
        return sum(side.tokens for side in self.sides)

    def describe(self) -> str:
        """Its size in words."""
        kind = "pairs" if len(self.sides) > 1 else "documents"
        return f"{self.tokens:,} tokens in {self.documents:,} {kind}"


@dataclass(frozen=True)
class DataRecord:
    """The data that a run reads: in phase `phase`, from sample `first_sample` of the run on.

    tokenizer: fingerprint of what made their ids; None if nothing says it.
    """

    phase: int = 0
    first_sample: int = 0
    tokenizer: str | None = None
    sources: tuple[SourceRecord, ...] = ()

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> DataRecord:
        """Raises KeyError, TypeError or ValueError for what is no such record."""
        phase, first, tokenizer = (tree[name] for name in ("phase", "first_sample", "tokenizer"))
        _check_counts(phase, first)
        if tokenizer is not None and not isinstance(tokenizer, str):
            raise TypeError("the tokenizer is no text")
        return cls(phase, first, tokenizer, tuple(map(_source, tree["sources"])))


def _source(tree: dict[str, Any]) -> SourceRecord:
    prefix, weight, sides = tree["prefix"], tree["weight"], tuple(map(_side, tree["sides"]))
    if not isinstance(prefix, str) or isinstance(weight, bool) or not sides:
        raise TypeError("a source of the data is none")
    return SourceRecord(prefix, float(weight), sides)


def _side(tree: dict[str, Any]) -> SideRecord:
    side = SideRecord(**tree)
    _check_counts(side.documents, side.tokens)
    if not isinstance(side.digest, str):
        raise TypeError("a digest of the data is no text")
    return side


def _check_counts(*numbers: object) -> None:
    if not all(
        isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in numbers
    ):
        raise TypeError("a count of the data is none")
