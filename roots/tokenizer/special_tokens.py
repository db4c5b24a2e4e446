"""What begins and ends texts, by all the files that say so.

A model of Hugging Face says it in five places: `bos_token` and `eos_token`, names, in
tokenizer_config.json and special_tokens_map.json; `bos_token_id` and `eos_token_id`, an id or a
list of them, in config.json and generation_config.json; and the post-processor in tokenizer.json,
which alone decides what is put in front of a text (so do transformers 5, where `add_bos_token` of
tokenizer_config.json has no effect beside a tokenizer.json). Files that are not there say nothing,
as null and "" do.

Several tokens may end a text: a turn of a chat ends otherwise than a document, and the files of one
model often name different ones. Writing stops at any. Contradictions are another matter and are
refused: two names for the tokenizer's own begin or end token, and a begin token of the model that
is another special token than the tokenizer's. (A begin id that is no special token is a left-over
default of a library, such as Llama's 1 beside a vocabulary of one's own.)

documents.json holds what a training was really fed, and goes before all of them: a JSON object with
`format` "roots-documents", `version` 1, `begin_tokens` (ids), `end_of_document` (id) and
`tokenizer` (fingerprint).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roots.errors import RootsError, problem

END_OF_DOCUMENT = "<|endoftext|>"
# What a person types where no token is wanted.
NO_TOKEN = "none"
DOCUMENTS_NAME = "documents.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_MAP_NAME = "special_tokens_map.json"
MODEL_CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
# What other models call it, asked for when no file names one.
_KNOWN_END_TOKENS = (END_OF_DOCUMENT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_DOCUMENTS_FORMAT = {"format": "roots-documents", "version": 1}


@dataclass(frozen=True)
class DocumentTokens:
    """What stands around every document of a dataset: ids in front of it, and the id behind it."""

    begin: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class SpecialTokens:
    """What begins and ends texts.

    documents: what stands around a document; its begin also in front of every prompt and source
    start:     what a text starts with of which nothing is given; never empty
    stops:     any of these ends a text that is written; the end of a document is one of them
    """

    documents: DocumentTokens
    start: tuple[int, ...]
    stops: frozenset[int]


@dataclass(frozen=True)
class Vocabulary:
    """What names of tokens mean: ids of all, and the ids that are special."""

    ids: Mapping[str, int]
    special: frozenset[int]

    def named(self, token: str, option: str, where: Path) -> int:
        """The id of `token`, which `option` names. Raises RootsError if there is none."""
        if token not in self.ids:
            known = sorted((i, name) for name, i in self.ids.items() if i in self.special)
            some = ", ".join(name for _, name in known[:12]) or "none is special"
            rule = f"is no token of {where}"
            raise RootsError(problem(option, token, rule, f"name one of its tokens ({some})"))
        return self.ids[token]


def read_special_tokens(
    source: Path,
    vocabulary: Vocabulary,
    front: tuple[int, ...],
    begin_token: str | None = None,
    end_token: str | None = None,
    fed: DocumentTokens | None = None,
) -> SpecialTokens:
    """The special tokens of the tokenizer.json `source`, by it and the files beside it.

    front:       ids that its post-processor puts in front of a text
    begin_token: name of what is to begin every document instead, NO_TOKEN for nothing
    end_token:   name of what is to end every document instead
    fed:         what a training had around documents; None: as documents.json beside it says
    Raises RootsError for files that are damaged or contradict each other, for names that are not in
    the vocabulary, and where nothing can end a document.
    """
    folder = source.parent
    model_files = (folder / MODEL_CONFIG_NAME, folder / GENERATION_NAME)
    model_ends = [i for path in model_files for i in _ids(path, "eos_token_id")]
    own_end = _tokenizer_end(source, vocabulary)
    own_begin = _begin(source, vocabulary, model_files)
    fed = read_documents(folder) if fed is None else fed
    if end_token is not None:
        end = vocabulary.named(end_token, "--end-token", source)
    elif fed is not None:
        end = fed.end
    elif own_end is not None:
        end = own_end
    else:
        known = [i for i in model_ends if i in vocabulary.special]
        end = known[0] if known else _known_end(source, vocabulary)
    front = front if fed is None else fed.begin
    if begin_token == NO_TOKEN:
        front = ()
    elif begin_token is not None:
        front = (vocabulary.named(begin_token, "--begin-token", source),)
    # What a training never saw in front of a text cannot start one.
    bare = (end,) if own_begin is None or fed is not None else (own_begin,)
    stops = {end, *model_ends, *([] if own_end is None else [own_end])}
    return SpecialTokens(DocumentTokens(front, end), front or bare, frozenset(stops))


def read_documents(folder: Path) -> DocumentTokens | None:
    """What documents.json in `folder` says, None without one. Raises RootsError if damaged."""
    path = folder / DOCUMENTS_NAME
    tree = read_json(path)
    if not tree:
        return None
    begin, end = tree.get("begin_tokens"), tree.get("end_of_document")
    known = all(tree.get(key) == value for key, value in _DOCUMENTS_FORMAT.items())
    if not (known and isinstance(begin, list) and _are_ids([*begin, end])):
        rule = "does not say in ROOTS' form, version 1, what stands around documents"
        raise RootsError(problem(str(path), None, rule, "copy it again from its checkpoint"))
    assert isinstance(end, int), "checked above"
    return DocumentTokens(tuple(begin), end)


def documents_text(documents: DocumentTokens, fingerprint: str) -> str:
    """The content of documents.json."""
    tree = {"begin_tokens": list(documents.begin), "end_of_document": documents.end}
    tree = {**_DOCUMENTS_FORMAT, **tree, "tokenizer": fingerprint}
    return json.dumps(tree, indent=2) + "\n"


def recorded_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the tokenizer that a training was fed by, from documents.json."""
    found = read_json(folder / DOCUMENTS_NAME).get("tokenizer")
    return found if isinstance(found, str) else None


def _tokenizer_end(source: Path, vocabulary: Vocabulary) -> int | None:
    """The end token that the tokenizer's own files name. Raises RootsError for an unknown one."""
    named = _name(source, "eos_token")
    if named is None or named in vocabulary.ids:
        return None if named is None else vocabulary.ids[named]
    rule = f"does not know its eos_token {named!r}"
    raise RootsError(problem(str(source), None, rule, _end_fix()))


def _known_end(source: Path, vocabulary: Vocabulary) -> int:
    for token in _KNOWN_END_TOKENS:
        if token in vocabulary.ids:
            return vocabulary.ids[token]
    raise RootsError(problem(str(source), None, "has no token that ends a document", _end_fix()))


def _end_fix() -> str:
    return f"name one of its tokens as eos_token in {TOKENIZER_CONFIG_NAME} beside it"


def _begin(source: Path, vocabulary: Vocabulary, model_files: tuple[Path, ...]) -> int | None:
    """The token that begins texts by name or id. Raises RootsError where two are named."""
    named = _name(source, "bos_token")
    found: dict[str, int] = {}
    if named is not None and named in vocabulary.ids:
        found[f"bos_token {named!r}"] = vocabulary.ids[named]
    for path in model_files:
        for token in _ids(path, "bos_token_id"):
            if token not in vocabulary.special:
                continue
            for other, value in found.items():
                if value != token:
                    rule = f"contradicts {other} ({value}) of {source.parent}"
                    fix = "let the files of the model agree on what begins a text"
                    raise RootsError(problem(f"{path} bos_token_id", token, rule, fix))
            found[f"bos_token_id of {path.name}"] = token
    return next(iter(found.values()), None)


def _name(source: Path, key: str) -> str | None:
    """What the tokenizer's own files call a token. Raises RootsError where they disagree."""
    paths = [source.with_name(name) for name in (TOKENIZER_CONFIG_NAME, SPECIAL_MAP_NAME)]
    names = [name for path in paths for name in [_content(read_json(path).get(key))] if name]
    if len(set(names)) > 1:
        rule = f"contradicts {names[0]!r} in {paths[0].name} beside it"
        fix = "let both name the same token, or remove one of the two lines"
        raise RootsError(problem(f"{paths[1]} {key}", names[1], rule, fix))
    return names[0] if names else None


def _content(token: Any) -> str | None:
    """The text of a token, which may stand in the long form of an added one."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _ids(path: Path, key: str) -> list[int]:
    """The ids under a key: none, one or several. Raises RootsError for anything else."""
    value = read_json(path).get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in ids):
        rule = "must be the id of a token, or a list of them"
        raise RootsError(problem(f"{path} {key}", value, rule, "correct it"))
    # Some write -1 where they mean none.
    return [token for token in ids if token >= 0]


def _are_ids(values: list[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none. Raises RootsError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        rule = f"is not a JSON object ({str(error).splitlines()[0]})"
        raise RootsError(problem(str(path), None, rule, "repair or remove it")) from None
    if not isinstance(tree, dict):
        rule = f"is not a JSON object (but {type(tree).__name__})"
        raise RootsError(problem(str(path), None, rule, "repair or remove it"))
    return tree
