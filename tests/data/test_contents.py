"""A digest tells one dataset from another, wherever it lies."""

from __future__ import annotations

import shutil

import numpy as np

from roots.data.contents import contents_digest
from roots.data.indexed import IndexedDataset, IndexedWriter


def digest_of(prefix):
    return contents_digest(IndexedDataset(prefix))


def test_follows_the_documents_and_not_their_place(write_dataset, tmp_path):
    documents = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    prefix = write_dataset(documents)
    for ending in ("bin", "idx"):
        shutil.copy(f"{prefix}.{ending}", tmp_path / f"copy.{ending}")
    assert digest_of(tmp_path / "copy") == digest_of(prefix)
    others = {
        # Other tokens, other documents of the same tokens, another order, another type.
        "a": [[1, 2, 3], [4, 5], [6, 7, 8, 1]],
        "b": [[1, 2], [3, 4, 5], [6, 7, 8, 9]],
        "c": [[4, 5], [1, 2, 3], [6, 7, 8, 9]],
    }
    digests = {digest_of(write_dataset(each, name)) for name, each in others.items()}
    digests |= {digest_of(write_dataset(documents, "d", vocab_size=100_000)), digest_of(prefix)}
    assert len(digests) == 5


def test_parts_of_a_large_file_reach_from_its_beginning_to_its_end(tmp_path):
    tokens = np.arange(900_000) % 1000
    with IndexedWriter(tmp_path / "large", 1000) as writer:
        writer.add(tokens)
        writer.finish("test", end_of_document=0)
    before = {digest_of(tmp_path / "large")}
    size = (tmp_path / "large.bin").stat().st_size
    for place in (0, size - 1, (size - (64 << 10)) * 7 // 15):
        with (tmp_path / "large.bin").open("r+b") as file:
            file.seek(place)
            old = file.read(1)
            file.seek(place)
            file.write(bytes([old[0] ^ 1]))
        before.add(digest_of(tmp_path / "large"))
    assert len(before) == 4
