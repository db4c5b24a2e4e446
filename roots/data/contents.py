"""Whether two datasets are the same one, wherever they lie: a digest of parts of their files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from roots.data.indexed import IndexedDataset
from roots.data.open_files import UnreadableFile

_PARTS = 16
_PART_BYTES = 64 << 10


def contents_digest(indexed: IndexedDataset) -> str:
    """Hash lengths and parts of PREFIX.idx and PREFIX.bin, which may have terabytes: a MiB of each.

    The parts are spread over the file, its beginning and end among them; a file of up to a MiB is
    read whole. Other documents, or the same in another order, have another digest.
    Raises UnreadableFile.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in (indexed.idx_path, indexed.bin_path):
        try:
            _add(digest, path)
        except OSError as error:
            raise UnreadableFile.because_of(path, error) from None
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        digest.update(f"{size};".encode())
        last = max(0, size - _PART_BYTES)
        if size <= _PARTS * _PART_BYTES:
            digest.update(file.read())
            return
        for part in range(_PARTS):
            file.seek(last * part // (_PARTS - 1))
            digest.update(file.read(_PART_BYTES))
