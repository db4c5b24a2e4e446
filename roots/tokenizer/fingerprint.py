"""A fingerprint of what a tokenizer makes of text, whatever its file looks like.

Two files with one meaning differ in much: the order of keys, spellings of merges by versions of
`tokenizers`, what the last use left in them (truncation, padding, dropout), what is put around a
text and how ids are spelled again. Only what decides the ids of plain text is digested.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Of a tokenizer.json, what decides ids; `model` without its dropout, which is never applied here.
_PARTS = ("normalizer", "pre_tokenizer", "added_tokens", "model")
_WITHOUT_MEANING = frozenset({"dropout", "trim_offsets"})


def digest_of_ids(tree: dict[str, Any]) -> str:
    """32 hex digits of the tree of a tokenizer.json as `tokenizers` writes it."""
    parts = {name: _meaning(tree.get(name)) for name in _PARTS}
    model = parts["model"]
    if "merges" in model:
        # Older files spell a merge "a b", newer ones ["a", "b"].
        model["merges"] = [
            merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]
        ]
    content = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _meaning(tree: Any) -> Any:
    """The tree without keys that say nothing.

    null and false are what a key means that is absent, and newer versions write more of them.
    """
    if isinstance(tree, dict):
        return {
            key: _meaning(value)
            for key, value in tree.items()
            if key not in _WITHOUT_MEANING and value is not None and value is not False
        }
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return [_meaning(value) for value in tree]
    return tree
