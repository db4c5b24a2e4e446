"""A tokenizer.json as the vocabulary of a GGUF file: byte-level BPE, as ROOTS trains it.

Only those go that llama.cpp has a name for; see `known_splits`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from roots.errors import RootsError, problem
from roots.exchange.gguf.known_splits import UnknownStep, split_name
from roots.exchange.hf.tokenizer_files import TOKENIZER_NAME, write_tokenizer
from roots.tokenizer.tokenizer import Tokenizer

# Kinds of tokens in llama.cpp (llama_token_type).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_FIX = "export with --format hf, and convert that folder with llama.cpp's own script"


def add_tokenizer(writer: Any, where: str, words: Tokenizer, vocab_size: int) -> None:
    """Add the tokenizer `words` that `where` names to a GGUFWriter, padded to `vocab_size` tokens.

    Raises RootsError if llama.cpp would give other ids, or refuse the file.
    """
    tree = _tree(where)
    try:
        split = split_name(tree)
    except UnknownStep as unknown:
        raise RootsError(problem("tokenizer", where, str(unknown), _FIX)) from None
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
    writer.add_tokenizer_pre(split)
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


def _merge(pair: str | list[str]) -> str:
    """One merge in the older of the two spellings of tokenizer.json."""
    return pair if isinstance(pair, str) else " ".join(pair)
