"""Tokenizer files between ROOTS and Hugging Face, which both read tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from roots.config.run import RunConfig
from roots.errors import RootsError, problem
from roots.exchange.foreign_folder import copy_file, file_in
from roots.tokenizer.special_tokens import (
    DOCUMENTS_NAME,
    END_OF_DOCUMENT,
    GENERATION_NAME,
    MODEL_CONFIG_NAME,
    SPECIAL_MAP_NAME,
    TOKENIZER_CONFIG_NAME,
    DocumentTokens,
    read_documents,
    read_json,
    recorded_fingerprint,
)
from roots.tokenizer.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    front_of,
    load_tokenizer,
    tokenizer_file,
)
from roots.tokenizer.train import save_tokenizer

TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_NAME = "tokenizer.json"
# What a model says besides its tokenizer, kept beside it: begin and end tokens, and how to write.
MODEL_NAMES = (MODEL_CONFIG_NAME, GENERATION_NAME)
TOKENIZER_NAMES = (
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    SPECIAL_MAP_NAME,
    DOCUMENTS_NAME,
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
    return copy_files(source, target, TOKENIZER_NAMES)


def copy_files(source: Path, target: Path, names: Sequence[str]) -> list[str]:
    """Copy those of `names` that lie in `source`; return theirs."""
    found = {name: path for name in names if (path := file_in(source, name)) is not None}
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        copy_file(path, target / name)
    return list(found)


def write_tokenizer(where: str, target: Path, fed: DocumentTokens | None = None) -> list[str]:
    """Write the tokenizer that `where` names, a folder or `bytes`, so that AutoTokenizer loads it.

    It puts in front of a text what a training was `fed` there. Returns the names of the files.
    Raises RootsError where it does not load.
    """
    words = load_tokenizer(where, fed=fed)
    if where == "bytes":
        save_tokenizer(_byte_tokenizer(), target)
        return [TOKENIZER_NAME, TOKENIZER_CONFIG_NAME]
    source = tokenizer_file(Path(where))
    names = copy_tokenizer(source.parent, target)
    if TOKENIZER_NAME not in names:  # a file of another name
        target.mkdir(parents=True, exist_ok=True)
        copy_file(source, target / TOKENIZER_NAME)
        names.append(TOKENIZER_NAME)
    _put_in_front(target / TOKENIZER_NAME, words.special.documents.begin)
    if TOKENIZER_CONFIG_NAME not in names:
        # Without a class AutoTokenizer would ask config.json for one, which may not fit the file.
        end = words.name_of(words.end_of_document)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        (target / TOKENIZER_CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        names.append(TOKENIZER_CONFIG_NAME)
    return names


def _put_in_front(path: Path, begin: tuple[int, ...]) -> None:
    """Let a tokenizer.json put `begin` in front of a text, where it does something else."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    if front_of(tokenizer) == begin:
        return
    names = [str(tokenizer.id_to_token(token)) for token in begin]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*names, "$A"], special_tokens=list(zip(names, begin, strict=True))
    )
    tokenizer.save(str(path))


def find_tokenizer(
    config: RunConfig, checkpoint: Path, given: str | None
) -> tuple[str | None, str]:
    """Folder of the tokenizer, or `bytes`, or None and why there is none.

    The one that lies in the checkpoint goes before the one that its config names, which may have
    moved. One that is asked for must exist and have the same vocabulary; raises RootsError else.
    """
    own = checkpoint / TOKENIZER_FOLDER
    if given is not None:
        _check_same_ids(config, checkpoint, given)
        return given, ""
    if (own / TOKENIZER_NAME).is_file():
        return str(own), ""
    named = config.data.tokenizer
    if named is None and recorded_fingerprint(own) == ByteTokenizer.fingerprint:
        return "bytes", ""
    if named is None:
        return None, "data.tokenizer is not set; give --tokenizer DIR"
    if named != "bytes" and not Path(named).exists():
        return None, f"data.tokenizer={named!r} does not exist; give --tokenizer DIR"
    return named, ""


def fed_documents(checkpoint: Path) -> DocumentTokens | None:
    """What stood around documents in the training of a checkpoint; None where it does not say."""
    return read_documents(checkpoint / TOKENIZER_FOLDER)


def _check_same_ids(config: RunConfig, checkpoint: Path, given: str) -> None:
    """Raise RootsError where the tokenizer `given` maps text to other ids than the training's.

    As far as that is known: from the checkpoint, or else from where its config found it.
    """
    known = recorded_fingerprint(checkpoint / TOKENIZER_FOLDER)
    if known is None:
        own, _ = find_tokenizer(config, checkpoint, None)
        known = None if own is None else load_tokenizer(own).fingerprint
    if known is not None and not load_tokenizer(given).has_ids_of(known):
        rule = f"has another vocabulary than the model in {checkpoint} was trained with"
        fix = "leave it out, or give the tokenizer of that training"
        raise RootsError(problem("--tokenizer", given, rule, fix))


def check_vocabulary(words: Tokenizer, where: str, vocab_size: int) -> None:
    """Raises RootsError for a tokenizer with more ids than the model has rows."""
    if words.vocab_size > vocab_size:
        rule = f"has {words.vocab_size} ids, but the model has rows for {vocab_size}"
        raise RootsError(
            problem("tokenizer", where, rule, "give the one the model was trained with")
        )


def token_ids(
    words: Tokenizer | None, begin_token: int | None, own: Path | None = None
) -> dict[str, Any]:
    """The special tokens of config.json, and of generation_config.json where none came along.

    words:       the tokenizer, if there is one
    begin_token: what the decoder of an encoder-decoder writes after, or None; it pads too, as in T5
    own:         folder with the files that an imported model came with, whose begin and end tokens
                 stay; None where it is to have others
    """
    ids: dict[str, Any] = {}
    if words is not None:
        special, end = words.special, words.end_of_document
        others = sorted(i for i in special.stops if i != end and i < words.vocab_size)
        ids["bos_token_id"] = special.start[0]
        ids["eos_token_id"] = [end, *others] if others else end
        ids["pad_token_id"] = end
    if begin_token is not None:
        ids.update(decoder_start_token_id=begin_token, pad_token_id=begin_token)
    if own is not None:
        theirs = read_json(own / MODEL_CONFIG_NAME)
        names = {"bos_token_id", "eos_token_id"} & theirs.keys()
        ids.update(with_end({name: theirs[name] for name in names}, read_documents(own)))
    return ids


def generation_settings(ids: dict[str, Any], own: Path | None) -> dict[str, Any]:
    """The content of generation_config.json: what the model came with, or else `ids`."""
    theirs = {} if own is None else read_json(own / GENERATION_NAME)
    return with_end(theirs, None if own is None else read_documents(own)) if theirs else ids


def with_end(tree: dict[str, Any], fed: DocumentTokens | None) -> dict[str, Any]:
    """`tree` with what ends a document in the training among its end tokens."""
    value = tree.get("eos_token_id")
    ends = [] if value is None else value if isinstance(value, list) else [value]
    if fed is None or fed.end in ends:
        return tree
    return {**tree, "eos_token_id": [*ends, fed.end] if ends else fed.end}


def _byte_tokenizer() -> tokenizers.Tokenizer:
    """`bytes` as a tokenizer.json: a byte-level BPE without merges, its ids the bytes' values."""
    vocabulary = {character: byte for byte, character in _byte_characters().items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_DOCUMENT, special=True)])
    assert tokenizer.token_to_id(END_OF_DOCUMENT) == ByteTokenizer.end_of_document
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
