"""Samples of T + 1 tokens from one dataset, in an order that depends on the seed alone.

Legend: T sequence length; a sample has T + 1 tokens so that labels are the tokens shifted by one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
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
from roots.data.index import EpochArrays, build_epochs, plan_epochs
from roots.data.indexed import IndexedDataset, Int64s
from roots.data.open_files import UnreadableFile, check_mapped
from roots.errors import RootsError, problem
from roots.log import get_logger

_LOGGER = get_logger("data")
_HASHED_BYTES = 1 << 20
# A sample reaches into the next epoch, and steps that are read ahead beyond that.
_BLOCKS_AT_HAND = 4


@dataclass(frozen=True)
class Sample:
    """Consecutive tokens, [T + 1] int64, and for each the index of its document's first token."""

    tokens: Int64s
    document_starts: Int64s


class GPTDataset:
    """A split of a dataset, cut into samples and shuffled.

    `len()` is the number of samples of the planned epochs, at least as many as asked for. Sample i
    does not depend on how many were asked for. Index arrays are made as epochs come up; those of a
    whole epoch are cached on disk, those of small epochs are quickly made, many at a time, and kept
    in memory.
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
        """Check the index of the dataset, and map the arrays of the first epoch.

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
        self._plan = plan_epochs(tokens, sequence_length, max(num_samples, 1), len(documents))
        self._seed = seed
        self._cache = cache_folder(indexed.prefix, cache_directory)
        self._lock_timeout_seconds = lock_timeout_seconds
        self._blocks = functools.lru_cache(maxsize=_BLOCKS_AT_HAND)(self._make_block)
        # As it was opened: its name may stand for another file when a later epoch begins.
        self._identity = ""
        if self._plan.epochs_per_block > 1:
            indexed.check_index()
        else:
            self._identity = _identity(indexed)
        self._blocks(0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._plan.num_samples

    def __getitem__(self, sample: int) -> Sample:
        """Read sample `sample` of the shuffled order: its tokens and document boundaries.

        Raises UnreadableFile where a file no longer has what it had.
        """
        self.indexed.check_mapped()
        plan, size = self._plan, self.sequence_length + 1
        epoch = plan.epoch_of(sample)
        epochs, arrays = self._block_of(epoch)
        first = plan.first_sample(epochs.start)
        place = int(arrays.shuffle[sample - first])
        if not 0 <= place < len(arrays.shuffle):
            raise self._damaged_cache()
        start = (first + place) * self.sequence_length
        epoch = start // plan.epoch_tokens
        offset = start - epoch * plan.epoch_tokens
        tokens = np.empty(size, dtype=np.int64)
        starts = np.empty(size, dtype=np.int64)
        filled = 0
        while filled < size:
            before = filled
            for begin, end in self._spans(epoch, offset, size - filled):
                count = end - begin
                tokens[filled : filled + count] = self.indexed.tokens[begin:end]
                starts[filled : filled + count] = filled
                filled += count
            if filled == before:
                raise self._damaged_cache()
            epoch, offset = epoch + 1, 0
        return Sample(tokens, starts)

    def _spans(self, epoch: int, offset: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield [begin, end) in the tokens of the dataset, document by document of an epoch.

        From token `offset` of the epoch on, `count` tokens in all or as far as the epoch goes.
        """
        epochs, arrays = self._block_of(epoch)
        base = (epoch - epochs.start) * len(self.documents)
        ends = arrays.ends[base : base + len(self.documents)]
        place = int(np.searchsorted(ends, offset, side="right"))
        while count > 0 and place < len(ends):
            document = self.documents.start + int(arrays.order[base + place])
            left = int(ends[place]) - offset
            if document not in self.documents:
                raise self._damaged_cache()
            start, stop = self.indexed.document_span(document)
            if not 0 <= left <= stop - start:
                raise self._damaged_cache()
            taken = min(left, count)
            if taken:
                yield stop - left, stop - left + taken
            place, offset, count = place + 1, offset + taken, count - taken

    def _damaged_cache(self) -> RootsError:
        rule = f"its arrays do not fit {self.indexed.idx_path}"
        fix = "remove the folder; it is built again"
        return RootsError(problem("index cache", str(self._cache), rule, fix))

    def _block_of(self, epoch: int) -> tuple[range, EpochArrays]:
        """The epochs whose arrays are made together with those of `epoch`, and the arrays."""
        number = epoch // self._plan.epochs_per_block
        arrays = self._blocks(number)
        check_mapped(arrays.order, arrays.ends, arrays.shuffle)
        return self._plan.block(number), arrays

    def _make_block(self, number: int) -> EpochArrays:
        plan, epochs = self._plan, self._plan.block(number)

        def build() -> EpochArrays:
            self.indexed.check_mapped()
            lengths = np.diff(self.indexed.document_starts(self.documents))
            return build_epochs(lengths, plan, epochs, self._seed)

        def checked() -> Arrays:
            self.indexed.check_index()
            return vars(build())

        if plan.epochs_per_block > 1:
            return build()
        purpose: Purpose = {
            "arrays": "an epoch of one dataset",
            "dataset": self._identity,
            "first_document": self.documents.start,
            "last_document": self.documents.stop,
            "sequence_length": self.sequence_length,
            "epoch": number,
            "seed": self._seed,
        }
        timeout = self._lock_timeout_seconds
        try:
            arrays = cached_arrays(self._cache, purpose, checked, timeout_seconds=timeout)
        except UnreadableFile:
            raise
        except RootsError as error:
            if number == 0:
                raise
            # No reason to end a run that is on its way.
            _LOGGER.warning("%s; made in memory for now", error)
            return build()
        return EpochArrays(arrays["order"], arrays["ends"], arrays["shuffle"])


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
