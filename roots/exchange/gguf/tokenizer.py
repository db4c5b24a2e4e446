"""A tokenizer.json as the vocabulary of a GGUF file: byte-level BPE, as ROOTS trains it.

GGUF names the rule by which text is split before merging instead of spelling its pattern, so only
tokenizers with a split that llama.cpp has a name for can go.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from roots.errors import RootsError, problem
from roots.exchange.hf.tokenizer_files import TOKENIZER_NAME, write_tokenizer
from roots.tokenizer.tokenizer import Tokenizer

# Kinds of tokens in llama.cpp (llama_token_type).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
# Text in the pattern of a Split pre-tokenizer, and llama.cpp's name of that split.
_SPLITS = (
    (r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", "llama-bpe"),
    (r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*", "qwen2"),
)


def add_tokenizer(writer: Any, where: str, words: Tokenizer, vocab_size: int) -> None:
    """Add the tokenizer `words` that `where` names to a GGUFWriter, padded to `vocab_size` tokens.

    Raises RootsError if it is no byte-level BPE with a split that llama.cpp knows.
    """
    tree = _tree(where)
    if tree["model"]["type"] != "BPE" or not _uses(tree, "ByteLevel"):
        rule = f"is {tree['model']['type']} and no byte-level BPE, which --format gguf asks for"
        fix = "export with --format hf, and convert that folder with llama.cpp's own script"
        raise RootsError(problem("tokenizer", where, rule, fix))
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [_UNUSED] * vocab_size
    for token, index in tree["model"]["vocab"].items():
        tokens[index], kinds[index] = token, _NORMAL
    for added in tree["added_tokens"]:
        kind = _CONTROL if added["special"] else _USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    end, begin = words.end_of_document, words.special.documents.begin
    if len(begin) > 1:
        rule = f"puts the tokens {list(begin)} in front of a text, of which llama.cpp knows one"
        fix = "export with --format hf, and convert that folder with llama.cpp's own script"
        raise RootsError(problem("tokenizer", where, rule, fix))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split_name(tree, where))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([_merge(pair) for pair in tree["model"]["merges"]])
    writer.add_bos_token_id(words.special.start[0])
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(bool(begin))


def _tree(where: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(where, Path(folder))
        tree: dict[str, Any] = json.loads((Path(folder) / TOKENIZER_NAME).read_text("utf-8"))
        return tree


def _steps(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The pre-tokenizers, one behind the other."""
    first = tree.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = first.get("pretokenizers", [first])
    return steps


def _uses(tree: dict[str, Any], kind: str) -> bool:
    return any(step.get("type") == kind for step in _steps(tree))


def _split_name(tree: dict[str, Any], where: str) -> str:
    """llama.cpp's name of the split."""
    patterns = [
        str(step["pattern"].get("Regex", step["pattern"].get("String")))
        for step in _steps(tree)
        if step.get("type") == "Split"
    ]
    if not patterns:
        return "gpt-2"
    for text, name in _SPLITS:
        if text in patterns[0]:
            return name
    rule = f"splits text by {patterns[0]!r}, for which --format gguf knows no name"
    fix = "export with --format hf, and convert that folder with llama.cpp's own script"
    raise RootsError(problem("tokenizer", where, rule, fix))


def _merge(pair: str | list[str]) -> str:
    """One merge in the older of the two spellings of tokenizer.json."""
    return pair if isinstance(pair, str) else " ".join(pair)
