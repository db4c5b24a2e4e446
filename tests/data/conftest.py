"""Small datasets for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from roots.data.indexed import IndexedDataset, IndexedWriter

WriteDataset = Callable[..., Path]


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """Write documents of token ids to tmp_path/NAME and return the prefix."""

    def write(
        documents: Sequence[Sequence[int]],
        name: str = "corpus",
        vocab_size: int = 1000,
        tokenizer: str = "test",
        end: int = 0,
    ) -> Path:
        prefix = tmp_path / name
        with IndexedWriter(prefix, vocab_size) as writer:
            for document in documents:
                writer.add(np.array(document, dtype=np.int64))
            writer.finish(tokenizer, end_of_document=end)
        return prefix

    return write


@pytest.fixture
def numbered(write_dataset: WriteDataset) -> Callable[..., IndexedDataset]:
    """Open a dataset in which every token is different: documents of the given lengths."""

    def make(lengths: Sequence[int], name: str = "corpus") -> IndexedDataset:
        bounds = np.cumsum([0, *lengths])
        documents = [range(a, b) for a, b in zip(bounds, bounds[1:])]
        return IndexedDataset(write_dataset(documents, name, int(bounds[-1]) + 1))

    return make
