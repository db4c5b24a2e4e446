"""The one tokenizer type, and loading one: any tokenizer.json, or plain bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers

from roots.errors import RootsError, problem

END_OF_DOCUMENT = "<|endoftext|>"
# What other models call it, asked for when tokenizer_config.json names no eos_token.
_KNOWN_END_TOKENS = (END_OF_DOCUMENT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")


class Tokenizer(Protocol):
    """Text to ids and back. Ids lie in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""

    @property
    def end_of_document(self) -> int:
        """Id of the token that ends every document of a dataset."""

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers if and only if they map text to ids alike."""

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Ids of `text`. Names of special tokens inside it are plain text unless asked for."""

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = False) -> list[list[int]]:
        """Ids of every text, in their order."""

    def decode(self, ids: Iterable[int], special_tokens: bool = False) -> str:
        """Text of `ids`; special tokens are left out unless asked for."""


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255, and 256 for the end of a document."""

    vocab_size = 257
    end_of_document = 256
    fingerprint = "bytes"

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Return the UTF-8 bytes of `text`; END_OF_DOCUMENT in it is one id if asked for."""
        if not special_tokens:
            return list(text.encode())
        first, *others = text.split(END_OF_DOCUMENT)
        ids = list(first.encode())
        for part in others:
            ids += [self.end_of_document, *part.encode()]
        return ids

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = False) -> list[list[int]]:
        """Return the ids of every text."""
        return [self.encode(text, special_tokens) for text in texts]

    def decode(self, ids: Iterable[int], special_tokens: bool = False) -> str:
        """Return the text; bytes that are no UTF-8 become U+FFFD."""
        end = END_OF_DOCUMENT.encode() if special_tokens else b""
        return b"".join(bytes([i]) if i < 256 else end for i in ids).decode(errors="replace")


class JsonTokenizer:
    """A tokenizer.json of Hugging Face `tokenizers`."""

    def __init__(self, folder: Path) -> None:
        """Read folder/tokenizer.json and, for the name of the end token, tokenizer_config.json.

        Raises RootsError for a missing folder or file, for one that does not parse, and where no
        token can end a document.
        """
        source = _tokenizer_file(folder)
        content = source.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower
            raise RootsError(
                problem(
                    str(source),
                    None,
                    f"does not hold a tokenizer ({_first_line(error)})",
                    "make it with `roots tokenizer train`, or copy the file again",
                )
            ) from None
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        # Ids may have holes, and the embedding must cover the largest one.
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_document = _end_of_document(source, vocabulary)
        self.fingerprint = hashlib.blake2b(content, digest_size=16).hexdigest()

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`, without anything added around it."""
        return self.encode_batch([text], special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = False) -> list[list[int]]:
        """Return the ids of every text; several texts are encoded in parallel threads."""
        # A corpus that talks about "<|endoftext|>" must not end a document there.
        self._tokenizer.encode_special_tokens = not special_tokens
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def decode(self, ids: Iterable[int], special_tokens: bool = False) -> str:
        """Return the text of `ids`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=not special_tokens)


def load_tokenizer(where: str | Path) -> Tokenizer:
    """Load a tokenizer: `bytes`, a folder with tokenizer.json, or the file itself.

    Raises RootsError in one line where that fails.
    """
    return ByteTokenizer() if str(where) == "bytes" else JsonTokenizer(Path(where))


def _tokenizer_file(folder: Path) -> Path:
    fix = "make one with `roots tokenizer train --vocab-size V --out DIR FILES...`, or use bytes"
    if not folder.exists():
        raise RootsError(problem("tokenizer", str(folder), "no such folder", fix))
    source = folder / "tokenizer.json" if folder.is_dir() else folder
    if not source.is_file():
        raise RootsError(problem("tokenizer", str(folder), "holds no tokenizer.json", fix))
    return source


def _end_of_document(source: Path, vocabulary: dict[str, int]) -> int:
    named = _eos_token(source.with_name("tokenizer_config.json"))
    for token in _KNOWN_END_TOKENS if named is None else (named,):
        if token in vocabulary:
            return vocabulary[token]
    rule = "has no token that ends a document" if named is None else "does not know its eos_token"
    raise RootsError(
        problem(
            str(source),
            None,
            rule if named is None else f"{rule} {named!r}",
            "name one of its tokens as eos_token in tokenizer_config.json beside it",
        )
    )


def _eos_token(config: Path) -> str | None:
    """Return `eos_token` of tokenizer_config.json, None without the file or the field."""
    if not config.is_file():
        return None
    try:
        content = json.loads(config.read_bytes())
        token = content.get("eos_token")
    except (ValueError, AttributeError) as error:
        rule = f"is not a JSON object ({_first_line(error)})"
        raise RootsError(problem(str(config), None, rule, "repair or remove it")) from None
    if isinstance(token, dict):  # the long form of an added token
        token = token.get("content")
    return token if isinstance(token, str) else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
