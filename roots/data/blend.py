"""Several datasets as one stream of samples, in proportion to their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roots.data.cache import Arrays, Purpose, cached_arrays
from roots.data.gpt import GPTDataset, Sample, cache_folder
from roots.data.index import build_blend_index
from roots.data.indexed import IndexedDataset, Int64s
from roots.data.open_files import UnreadableFile, check_mapped
from roots.errors import RootsError, problem

_NONE = range(0)
BlendIndex = tuple[NDArray[np.int32], Int64s]


@dataclass(frozen=True)
class Source:
    """One dataset of a blend: an open dataset, the documents of it to use, and its weight.

    Of pairs, `indexed` holds the sources and `target` the targets.
    """

    indexed: IndexedDataset
    documents: range
    weight: float = 1.0
    target: IndexedDataset | None = None


class Blend:
    """`num_samples` samples drawn from `sources`; sample i does not depend on how many follow.

    With `first` they are those from sample `first` of the order on.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        sequence_length: int,
        num_samples: int,
        seed: int,
        vocab_size: int,
        first: int = 0,
        reserved: range = _NONE,
        cache_directory: str | Path | None = None,
    ) -> None:
        """Map the index arrays of the blend and of every dataset in it.

        reserved: ids that the text must leave to the objective.
        Raises RootsError for a dataset whose tokens do not fit in `vocab_size`, for a split
        without tokens, and where the cache cannot be written.
        """
        for source in sources:
            check_vocabulary(source.indexed, vocab_size, reserved)
        self._num_samples = num_samples
        self._first = first
        self._vocab_size = vocab_size
        self._reserved = reserved
        weights = [source.weight for source in sources]
        folder = cache_folder(sources[0].indexed.prefix, cache_directory)
        self._index = blend_index(weights, first + num_samples, folder)
        self._datasets = [
            GPTDataset(
                source.indexed,
                source.documents,
                sequence_length=sequence_length,
                num_samples=count,
                seed=seed,
                cache_directory=cache_directory,
            )
            for source, count in zip(sources, self._counts(len(sources)), strict=True)
        ]

    def _counts(self, num_sources: int) -> list[int]:
        """Return how many samples each dataset gives."""
        if self._index is None:
            return [self._first + self._num_samples]
        return [int(count) for count in np.bincount(self._index[0], minlength=num_sources)]

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._num_samples

    def __getitem__(self, number: int) -> Sample:
        """Read sample `number`.

        Raises RootsError for a token id beyond the vocabulary, and for a file that has become
        unreadable.
        """
        if not 0 <= number < self._num_samples:
            raise IndexError(f"sample {number} of {self._num_samples}")
        try:
            which, sample = place_of(self._index, self._first + number)
            dataset = self._datasets[which]
            result = dataset[sample]
        except UnreadableFile as error:
            raise error.at(f"sample {number}") from None
        bad = self._bad_token(result.tokens)
        if bad is not None:
            raise vocabulary_error(dataset.indexed.prefix, bad, self._vocab_size, self._reserved)
        return result

    def _bad_token(self, tokens: Int64s) -> int | None:
        """A token that the text must not hold, if it does."""
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._vocab_size:
            return low if low < 0 else high
        taken = self._reserved
        if not taken or high < taken.start or low >= taken.stop:
            return None
        inside = tokens[(tokens >= taken.start) & (tokens < taken.stop)]
        return int(inside.max()) if len(inside) else None


def place_of(index: BlendIndex | None, number: int) -> tuple[int, int]:
    """Return the dataset of sample `number` of a blend, and its number there."""
    if index is None:
        return 0, number
    check_mapped(*index)
    return int(index[0][number]), int(index[1][number])


def check_vocabulary(indexed: IndexedDataset, vocab_size: int, reserved: range = _NONE) -> None:
    """Check the largest token id that PREFIX.json records, where there is one.

    Raises RootsError for a dataset whose largest id is beyond `vocab_size` or `reserved`.
    """
    description = indexed.description
    if description is None:
        return
    if description.max_token_id >= vocab_size or description.max_token_id in reserved:
        raise vocabulary_error(indexed.prefix, description.max_token_id, vocab_size, reserved)


def vocabulary_error(
    prefix: str, token_id: int, vocab_size: int, reserved: range = _NONE
) -> RootsError:
    """Say that a dataset holds a token id that the model has no embedding for, or other use."""
    if token_id in reserved and reserved.stop < vocab_size:
        rule = f"is one of the ids {reserved[0]} to {reserved[-1]} that hide text"
        fix = "set data.sentinel_token to the tokenizer's first sentinel, or use other data"
        return RootsError(problem(f"{prefix} token id", token_id, rule, fix))
    count = len(reserved) if reserved.stop == vocab_size else 0
    kept = f" and the last {count} hide text" if count else ""
    rule = f"model.vocab_size is {vocab_size}{kept}, so ids go from 0 to {vocab_size - count - 1}"
    larger = token_id + 1 + count
    fix = f"set model.vocab_size to {larger} or more, or use the data of another tokenizer"
    if token_id < 0:
        fix = "write the dataset again"
    return RootsError(problem(f"{prefix} token id", token_id, rule, fix))


def blend_index(weights: list[float], num_samples: int, folder: Path) -> BlendIndex | None:
    """Return for every sample its dataset and its number there, cached; None for a single dataset.

    Raises RootsError where the cache cannot be written.
    """
    if len(weights) == 1:
        return None

    def build() -> Arrays:
        dataset, sample = build_blend_index(weights, num_samples)
        return {"dataset": dataset, "sample": sample}

    purpose: Purpose = {"arrays": "blend", "weights": weights, "num_samples": num_samples}
    arrays = cached_arrays(folder, purpose, build)
    return arrays["dataset"], arrays["sample"]
