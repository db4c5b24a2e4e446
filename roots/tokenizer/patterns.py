"""How byte-level BPE tokenizers split text before they merge bytes: their steps and patterns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Llama 3 keeps up to three digits together, Qwen2 each apart; the rest of the pattern is the same.
_NEWER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _NEWER.replace("DIGITS", r"\p{N}{1,3}")
QWEN2 = _NEWER.replace("DIGITS", r"\p{N}")


def steps_of(tree: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """The steps, one behind the other, of what may be a sequence of sequences, or None.

    `tree` is a part of a tokenizer.json, `key` where a sequence of its kind holds its steps.
    """
    if tree is None:
        return
    if tree["type"] != "Sequence":
        yield tree
        return
    for step in tree[key]:
        yield from steps_of(step, key)
