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
from roots.errors import RootsError, problem


@dataclass(frozen=True)
class Source:
    """One dataset of a blend: an open dataset, the documents of it to use, and its weight."""

    indexed: IndexedDataset
    documents: range
    weight: float = 1.0


class Blend:
    """`num_samples` samples drawn from `sources`; sample i does not depend on how many follow."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        sequence_length: int,
        num_samples: int,
        seed: int,
        vocab_size: int,
        cache_directory: str | Path | None = None,
    ) -> None:
        """Map the index arrays of the blend and of every dataset in it.

        Raises RootsError for a dataset whose tokens do not fit in `vocab_size`, for a split
        without tokens, and where the cache cannot be written.
        """
        for source in sources:
            check_vocabulary(source.indexed, vocab_size)
        self._num_samples = num_samples
        self._vocab_size = vocab_size
        weights = [source.weight for source in sources]
        folder = cache_folder(sources[0].indexed.prefix, cache_directory)
        self._index = _blend_index(weights, num_samples, folder)
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
            return [self._num_samples]
        return [int(count) for count in np.bincount(self._index[0], minlength=num_sources)]

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._num_samples

    def __getitem__(self, number: int) -> Sample:
        """Read sample `number`. Raises RootsError for a token id beyond the vocabulary."""
        if not 0 <= number < self._num_samples:
            raise IndexError(f"sample {number} of {self._num_samples}")
        which, sample = 0, number
        if self._index is not None:
            which, sample = int(self._index[0][number]), int(self._index[1][number])
        dataset = self._datasets[which]
        result = dataset[sample]
        low, high = int(result.tokens.min()), int(result.tokens.max())
        if low < 0 or high >= self._vocab_size:
            bad = low if low < 0 else high
            raise vocabulary_error(dataset.indexed.prefix, bad, self._vocab_size)
        return result


def check_vocabulary(indexed: IndexedDataset, vocab_size: int) -> None:
    """Check the largest token id that PREFIX.json records, where there is one.

    Raises RootsError for a dataset with token ids beyond `vocab_size`.
    """
    description = indexed.description
    if description is not None and description.max_token_id >= vocab_size:
        raise vocabulary_error(indexed.prefix, description.max_token_id, vocab_size)


def vocabulary_error(prefix: str, token_id: int, vocab_size: int) -> RootsError:
    """Say that a dataset holds a token id that the model has no embedding for."""
    rule = f"model.vocab_size is {vocab_size}, so ids go from 0 to {vocab_size - 1}"
    fix = f"set model.vocab_size to {token_id + 1} or more, or use the data of another tokenizer"
    if token_id < 0:
        fix = "write the dataset again"
    return RootsError(problem(f"{prefix} token id", token_id, rule, fix))


def _blend_index(
    weights: list[float], num_samples: int, folder: Path
) -> tuple[NDArray[np.int32], Int64s] | None:
    """Return the cached index; None for a single dataset, which needs none."""
    if len(weights) == 1:
        return None

    def build() -> Arrays:
        dataset, sample = build_blend_index(weights, num_samples)
        return {"dataset": dataset, "sample": sample}

    purpose: Purpose = {"arrays": "blend", "weights": weights, "num_samples": num_samples}
    arrays = cached_arrays(folder, purpose, build)
    return arrays["dataset"], arrays["sample"]
