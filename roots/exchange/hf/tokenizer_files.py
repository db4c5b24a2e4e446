"""Tokenizer files between ROOTS and Hugging Face, which both read tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from roots.errors import RootsError, problem
from roots.exchange.foreign_folder import copy_file, file_in
from roots.tokenizer.tokenizer import ByteTokenizer, load_tokenizer
from roots.tokenizer.train import save_tokenizer

TOKENIZER_FOLDER = "tokenizer"
GENERATION_NAME = "generation_config.json"
TOKENIZER_NAME = "tokenizer.json"
_NAMES = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the files of a tokenizer that lie in `source`; return their names."""
    return copy_files(source, target, _NAMES)


def copy_files(source: Path, target: Path, names: Sequence[str]) -> list[str]:
    """Copy those of `names` that lie in `source`; return theirs."""
    found = {name: path for name in names if (path := file_in(source, name)) is not None}
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        copy_file(path, target / name)
    return list(found)


def write_tokenizer(where: str, target: Path) -> list[str]:
    """Write the tokenizer that `where` names, a folder or `bytes`, so that AutoTokenizer loads it.

    Returns the names of the files. Raises RootsError where it does not load.
    """
    load_tokenizer(where)
    if where == "bytes":
        save_tokenizer(_byte_tokenizer(), target)
        return [TOKENIZER_NAME, "tokenizer_config.json"]
    source = Path(where)
    names = copy_tokenizer(source if source.is_dir() else source.parent, target)
    if "tokenizer_config.json" not in names:
        # Without a class AutoTokenizer would ask config.json for one, which may not fit the file.
        end = Tokenizer.from_file(str(target / TOKENIZER_NAME)).id_to_token(
            load_tokenizer(where).end_of_document
        )
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        names.append("tokenizer_config.json")
    return names


def check_vocabulary(where: str, vocab_size: int) -> int:
    """The id that ends a document. Raises RootsError for a tokenizer with more ids than rows."""
    tokenizer = load_tokenizer(where)
    if tokenizer.vocab_size > vocab_size:
        rule = f"has {tokenizer.vocab_size} ids, but the model has rows for {vocab_size}"
        raise RootsError(
            problem("tokenizer", where, rule, "give the one the model was trained with")
        )
    return tokenizer.end_of_document


def token_ids(end_of_document: int | None, begin_token: int | None) -> dict[str, int]:
    """The special tokens of config.json and generation_config.json.

    `begin_token`: what the decoder of an encoder-decoder writes after, or None; it pads too,
    as in T5.
    """
    ids = {}
    if end_of_document is not None:
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_document)
    if begin_token is not None:
        ids.update(decoder_start_token_id=begin_token, pad_token_id=begin_token)
    return ids


def _byte_tokenizer() -> Tokenizer:
    """`bytes` as a tokenizer.json: a byte-level BPE without merges, its ids the bytes' values."""
    vocabulary = {character: byte for byte, character in _byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    assert tokenizer.token_to_id("<|endoftext|>") == ByteTokenizer.end_of_document
    return tokenizer


def _byte_characters() -> dict[int, str]:
    """The printable character for every byte by which byte-level BPE spells it (GPT-2, 2019).

    Visible Latin-1 characters stand for themselves, the others for code points from 256 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + number) for number, byte in enumerate(hidden)
    }
