"""Length and digest of a file of a checkpoint.

Today's digest is SHA-256, which processors have instructions for and `sha256sum` computes too; up
to version 2 of the manifest it was BLAKE2b of 16 bytes, which is still compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

DIGEST = "sha256"
DIGESTS = (DIGEST, "blake2b")
_BLAKE2B_BYTES = 16
_BLOCK_BYTES = 256 << 10


@dataclass(frozen=True)
class FileRecord:
    """Length and digest of one file; the digest in hexadecimal digits, `kind` one of DIGESTS."""

    bytes: int
    digest: str
    kind: str = DIGEST

    def to_json(self) -> dict[str, Any]:
        """{"bytes": n, kind: digest}; `from_json` is the way back."""
        return {"bytes": self.bytes, self.kind: self.digest}

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> FileRecord:
        """Raises TypeError, KeyError or ValueError for what `to_json` has not made."""
        (kind,) = [name for name in tree if name != "bytes"]
        if kind not in DIGESTS:
            raise ValueError(f"{kind!r} is no digest")
        if type(tree["bytes"]) is not int or type(tree[kind]) is not str:
            raise TypeError("a record is no length and digest")
        return FileRecord(tree["bytes"], tree[kind], kind)


class Digest(Protocol):
    """What takes bytes and tells their digest, as those of hashlib."""

    def update(self, content: bytes | memoryview, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The digest of all that was taken, in hexadecimal digits."""


def new_digest(kind: str = DIGEST) -> Digest:
    """A digest of nothing yet."""
    return hashlib.sha256() if kind == DIGEST else hashlib.blake2b(digest_size=_BLAKE2B_BYTES)


def digest_of(content: bytes, kind: str = DIGEST) -> str:
    """The digest of some bytes, in hexadecimal digits."""
    digest = new_digest(kind)
    digest.update(content)
    return digest.hexdigest()


def describe_file(path: Path, kind: str = DIGEST) -> FileRecord:
    """Read a file once for its length and digest. Raises OSError."""
    digest, count = new_digest(kind), 0
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(block):
            digest.update(block[:length])
            count += length
    return FileRecord(count, digest.hexdigest(), kind)
