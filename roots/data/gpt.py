"""Samples of T + 1 tokens from one dataset, in an order that depends on the seed alone.

Legend: T sequence length; a sample has T + 1 tokens so that labels are the tokens shifted by one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roots.data.cache import (
    DEFAULT_FOLDER,
    LOCK_TIMEOUT_SECONDS,
    Arrays,
    Purpose,
    cached_arrays,
)
from roots.data.index import EpochPlan, SampleIndices, build_sample_indices, plan_epochs
from roots.data.indexed import IndexedDataset, Int64s
from roots.errors import RootsError, problem

_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class Sample:
    """Consecutive tokens, [T + 1] int64, and for each the index of its document's first token."""

    tokens: Int64s
    document_starts: Int64s


class GPTDataset:
    """A split of a dataset, cut into samples and shuffled.

    `len()` is the number of samples of the planned epochs, at least as many as asked for. Sample i
    does not depend on how many were asked for.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        documents: range,
        *,
        sequence_length: int,
        num_samples: int,
        seed: int,
        cache_directory: str | Path | None = None,
        lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
    ) -> None:
        """Map the index arrays, building and caching them where this is their first use.

        Raises RootsError for a split without tokens and where the cache cannot be written.
        """
        self.indexed = indexed
        self.documents = documents
        self.sequence_length = sequence_length
        tokens = _count_tokens(indexed, documents)
        if tokens == 0:
            rule = f"documents {documents.start} to {documents.stop} hold no tokens"
            fix = "change data.split, or give data.valid a dataset of its own"
            raise RootsError(problem(indexed.prefix, None, rule, fix))
        plan = plan_epochs(tokens, sequence_length, max(num_samples, 1))
        self._indices = self._cached_indices(
            plan, seed, cache_folder(indexed.prefix, cache_directory), lock_timeout_seconds
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._indices.shuffle)

    def __getitem__(self, sample: int) -> Sample:
        """Read sample `sample` of the shuffled order: its tokens and document boundaries."""
        row = int(self._indices.shuffle[sample])
        (position, offset), (last, _) = self._indices.samples[row : row + 2].tolist()
        order = self._indices.order[position : last + 1].tolist()
        size = self.sequence_length + 1
        tokens = np.empty(size, dtype=np.int64)
        starts = np.empty(size, dtype=np.int64)
        filled = 0
        for relative in order:
            start, stop = self.indexed.document_span(self.documents.start + relative)
            count = min(stop - start - offset, size - filled)
            begin = start + offset
            tokens[filled : filled + count] = self.indexed.tokens[begin : begin + count]
            starts[filled : filled + count] = filled
            filled, offset = filled + count, 0
        assert filled == size, "the sample index does not fit the dataset"
        return Sample(tokens, starts)

    def _cached_indices(
        self, plan: EpochPlan, seed: int, folder: Path, timeout_seconds: float
    ) -> SampleIndices:
        purpose: Purpose = {
            "arrays": "samples of one dataset",
            "dataset": _identity(self.indexed),
            "first_document": self.documents.start,
            "last_document": self.documents.stop,
            "sequence_length": self.sequence_length,
            "num_samples": plan.num_samples,
            "seed": seed,
        }

        def build() -> Arrays:
            return vars(
                build_sample_indices(self.indexed, self.documents, self.sequence_length, plan, seed)
            )

        arrays = cached_arrays(folder, purpose, build, timeout_seconds=timeout_seconds)
        return SampleIndices(arrays["order"], arrays["samples"], arrays["shuffle"])


def split_documents(num_documents: int, weights: tuple[float, float, float]) -> tuple[range, ...]:
    """Cut documents into train, valid and test, in proportion to `weights`, in their stored order.

    Like Megatron: each boundary is the cumulated share, rounded to the nearest document.
    """
    total = sum(weights)
    bounds = [0]
    for position in range(1, 4):
        bounds.append(round(num_documents * (sum(weights[:position]) / total)))
    return tuple(range(bounds[i], bounds[i + 1]) for i in range(3))


def cache_folder(prefix: str, configured: str | Path | None) -> Path:
    """Return the folder of cached indices: as configured, else `index-cache` beside the prefix."""
    return Path(configured) if configured else Path(prefix).parent / DEFAULT_FOLDER


def _count_tokens(indexed: IndexedDataset, documents: range) -> int:
    if not documents:
        return 0
    first, _ = indexed.document_span(documents[0])
    _, last = indexed.document_span(documents[-1])
    return last - first


def _identity(indexed: IndexedDataset) -> str:
    """Hash what the index arrays are made from: the lengths in PREFIX.idx.

    Ends of the file stand for all of it, with its size and time: it can have gigabytes.
    """
    status = indexed.idx_path.stat()
    digest = hashlib.blake2b(f"{status.st_size} {status.st_mtime_ns}".encode(), digest_size=16)
    with open(indexed.idx_path, "rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(0, status.st_size - _HASHED_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
