"""The one tokenizer type, and loading one: any tokenizer.json, or plain bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import tokenizers

from roots.errors import RootsError, problem
from roots.tokenizer.fingerprint import digest_of_ids
from roots.tokenizer.parts import PART_CHARACTERS, Parts
from roots.tokenizer.special_tokens import (
    END_OF_DOCUMENT,
    NO_TOKEN,
    DocumentTokens,
    SpecialTokens,
    Vocabulary,
    read_special_tokens,
)

_IDS = "ids"


class Tokenizer(Protocol):
    """Text to ids and back. Ids lie in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""

    @property
    def special(self) -> SpecialTokens:
        """What begins and ends texts."""

    @property
    def end_of_document(self) -> int:
        """Id of the token that ends every document of a dataset."""

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers that map text to ids and end documents alike."""

    def has_ids_of(self, fingerprint: str) -> bool:
        """Whether one with that fingerprint maps text to ids alike, whatever ends documents."""

    def name_of(self, token: int) -> str:
        """What an id is called, for messages."""

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
    special = SpecialTokens(DocumentTokens((), 256), (256,), frozenset({256}))
    fingerprint = "bytes"

    def has_ids_of(self, fingerprint: str) -> bool:
        """Bytes have but one fingerprint."""
        return fingerprint == self.fingerprint

    def name_of(self, token: int) -> str:
        """Return END_OF_DOCUMENT, or the byte in hexadecimal digits."""
        return END_OF_DOCUMENT if token == self.end_of_document else f"0x{token:02x}"

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

    def __init__(
        self,
        folder: Path,
        *,
        begin_token: str | None = None,
        end_token: str | None = None,
        fed: DocumentTokens | None = None,
    ) -> None:
        """Read folder/tokenizer.json and what the files beside it say of special tokens.

        begin_token: name of what begins every document, NO_TOKEN for nothing; None: as they say
        end_token:   name of what ends every document; None: as they say
        fed:         what a training had around documents, whatever the files say
        Raises RootsError for a missing folder or file, for one that does not parse, for special
        tokens that contradict each other or are unknown, and where none can end a document.
        """
        source = tokenizer_file(folder)
        content = source.read_bytes()
        self._tokenizer = _parsed(source, content)
        self._digest_of_bytes = hashlib.blake2b(content, digest_size=16).hexdigest()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        special = frozenset(i for i, token in added.items() if token.special)
        vocabulary = Vocabulary(ids, special)
        # Ids may have holes, and the embedding must cover the largest one.
        self.vocab_size = max(ids.values()) + 1
        front = front_of(self._tokenizer)
        self.special = read_special_tokens(source, vocabulary, front, begin_token, end_token, fed)

    @property
    def end_of_document(self) -> int:
        """Id of the token that ends every document of a dataset."""
        return self.special.documents.end

    @property
    def fingerprint(self) -> str:
        """A digest of what decides ids, and the token that ends a document."""
        return f"{_IDS}-{self._digest_of_ids}-{self.end_of_document}"

    def has_ids_of(self, fingerprint: str) -> bool:
        """Whether one with that fingerprint maps text to ids alike, whatever ends documents.

        A fingerprint of before version 1 of these, a digest of the file's bytes, is known too.
        """
        kind, _, rest = fingerprint.partition("-")
        if kind == _IDS:
            return rest.rpartition("-")[0] == self._digest_of_ids
        return fingerprint == self._digest_of_bytes

    def name_of(self, token: int) -> str:
        """Return its text in the vocabulary, or the number of an id that has none."""
        return self._tokenizer.id_to_token(token) or str(token)

    @cached_property
    def _digest_of_ids(self) -> str:
        return digest_of_ids(json.loads(self._tokenizer.to_str()))

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`, without anything added around it."""
        return self.encode_batch([text], special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = False) -> list[list[int]]:
        """Return the ids of every text; several texts are encoded in parallel threads."""
        # A corpus that talks about "<|endoftext|>" must not end a document there.
        self._tokenizer.encode_special_tokens = not special_tokens
        if any(len(text) > PART_CHARACTERS for text in texts):
            return [self._encode_parts(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def _encode_parts(self, text: str) -> list[int]:
        """The same ids, of one part after the other, in bounded memory."""
        ids: list[int] = []
        for part in self._parts.of(text):
            (encoding,) = self._tokenizer.encode_batch_fast([part], add_special_tokens=False)
            # The same ids come as new objects of 32 bytes; 8 of a list are enough for each.
            ids.extend(map(self._all_ids.__getitem__, encoding.ids))
        return ids

    @cached_property
    def _parts(self) -> Parts:
        return Parts(self._tokenizer)

    @cached_property
    def _all_ids(self) -> list[int]:
        return list(range(self.vocab_size))

    def decode(self, ids: Iterable[int], special_tokens: bool = False) -> str:
        """Return the text of `ids`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=not special_tokens)


def load_tokenizer(
    where: str | Path,
    *,
    begin_token: str | None = None,
    end_token: str | None = None,
    fed: DocumentTokens | None = None,
) -> Tokenizer:
    """Load a tokenizer: `bytes`, a folder with tokenizer.json, or the file itself.

    The two names, as options of preprocess, choose what begins and ends every document, `fed` says
    what a training had there; see JsonTokenizer. Raises RootsError in one line where that fails.
    """
    if str(where) != "bytes":
        return JsonTokenizer(Path(where), begin_token=begin_token, end_token=end_token, fed=fed)
    for option, value, known in (
        ("--begin-token", begin_token, NO_TOKEN),
        ("--end-token", end_token, END_OF_DOCUMENT),
    ):
        if value not in (None, known):
            rule = f"must be {known} with the tokenizer `bytes`, which has no other"
            raise RootsError(problem(option, value, rule, "leave it out"))
    return ByteTokenizer()


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer.json in a folder, or the file itself. Raises RootsError if there is none."""
    fix = "make one with `roots tokenizer train --vocab-size V --out DIR FILES...`, or use bytes"
    if not folder.exists():
        raise RootsError(problem("tokenizer", str(folder), "no such folder", fix))
    source = folder / "tokenizer.json" if folder.is_dir() else folder
    if not source.is_file():
        raise RootsError(problem("tokenizer", str(folder), "holds no tokenizer.json", fix))
    return source


def _parsed(source: Path, content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer in a file, without what its last use has left there.

    Truncation and padding are how somebody called it, and dropout of merges how a model was trained
    (Provilkov et al. 2020): none says which ids a text has.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower
        raise RootsError(
            problem(
                str(source),
                None,
                f"does not hold a tokenizer ({_first_line(error)})",
                "make it with `roots tokenizer train`, or copy the file again",
            )
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def front_of(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The ids that the post-processor puts in front of a text, whatever kinds it is made of."""
    for text in ("a", "1", "."):
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text, add_special_tokens=True).ids
        for start in range(len(whole)):
            if plain and whole[start : start + len(plain)] == plain:
                return tuple(whole[:start])
    return ()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
