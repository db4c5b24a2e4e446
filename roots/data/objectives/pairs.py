"""Pairs of texts as training samples: a source to read and a target to write, one pair a sample.

Every epoch goes through all pairs once, in an order of its own that depends on the seed, the epoch
and the index alone (roots.data.permutation). Texts longer than the model takes are cut at the end;
a cut target has no end-of-document token, so the model does not learn to stop there.

Legend: T sequence length (tokens of a target), S source length.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roots.data.batch import Batch
from roots.data.blend import (
    BlendIndex,
    Source,
    blend_index,
    check_vocabulary,
    place_of,
    vocabulary_error,
)
from roots.data.gpt import cache_folder
from roots.data.indexed import IndexedDataset, Tokens
from roots.data.objectives.rows import sequence_batch
from roots.data.open_files import UnreadableFile
from roots.data.permutation import place_in_order
from roots.data.prefixes import refuse_endings
from roots.data.preprocessing.pairs import SIDES, side_prefix
from roots.data.sampler import dropout_keys
from roots.errors import RootsError, problem
from roots.log import get_logger
from roots.seeding import derive_key

_logger = get_logger(__name__)


@dataclass(frozen=True)
class PairShape:
    """How long the sides of a batch are, in tokens.

    A `multiple` pads each side to the longest text of the global batch, rounded up to a multiple
    of it; None pads to the full lengths. Both are the same on every layout.
    """

    source_length: int
    sequence_length: int
    multiple: int | None = None

    def of(self, longest: tuple[int, int]) -> tuple[int, int]:
        """Return (S, T) for texts of at most these lengths."""
        limits = (self.source_length, self.sequence_length)
        if self.multiple is None:
            return limits
        step = self.multiple
        source, target = (min(-(-n // step) * step, m) for n, m in zip(longest, limits))
        return source, target


def open_pairs(prefix: str) -> tuple[IndexedDataset, IndexedDataset]:
    """Open PREFIX.source and PREFIX.target.

    Raises RootsError where one cannot be opened, or they have different numbers of documents.
    """
    refuse_endings("pairs", prefix)
    source, target = (IndexedDataset(side_prefix(prefix, side)) for side in SIDES)
    for side in (source, target):
        side.check_index()
    if source.num_documents != target.num_documents:
        rule = f"holds {source.num_documents} documents, and {target.prefix} {target.num_documents}"
        fix = "run `roots preprocess --pairs` again, or copy all files again"
        raise RootsError(problem(source.prefix, None, rule, fix))
    return source, target


class PairDataset:
    """The pairs of one source of a blend, shuffled anew in every epoch."""

    def __init__(self, source: Source, *, shape: PairShape, seed: int, vocab_size: int) -> None:
        """Check what can be checked without reading tokens, and tell once how many are cut.

        Raises RootsError for token ids beyond the vocabulary.
        """
        assert source.target is not None, "pairs have two sides"
        self._sides = (source.indexed, source.target)
        self._documents = source.documents
        self._limits = (shape.source_length, shape.sequence_length)
        self._key = derive_key(seed, "pairs")
        self._vocab_size = vocab_size
        for side in self._sides:
            check_vocabulary(side, vocab_size)
        self._tell_cuts()

    def document(self, sample: int) -> int:
        """Return the number of the pair that is sample `sample`: a bijection in every epoch."""
        epoch, index = divmod(sample, len(self._documents))
        place = place_in_order(derive_key(self._key, epoch), len(self._documents), index)
        return self._documents.start + place

    def lengths(self, sample: int) -> tuple[int, int]:
        """Return the tokens of both sides of a sample once cut, without reading them."""
        document = self.document(sample)
        for side in self._sides:
            side.check_mapped()
        spans = [side.document_span(document) for side in self._sides]
        source, target = (min(b - a, m) for (a, b), m in zip(spans, self._limits))
        return source, target

    def __getitem__(self, sample: int) -> tuple[Tokens, Tokens]:
        """Read both sides, cut.

        Raises RootsError for an empty text, a foreign token id and a file that became unreadable.
        """
        document = self.document(sample)
        texts = []
        for side, limit in zip(self._sides, self._limits, strict=True):
            try:
                side.check_mapped()
                text = side[document][:limit]
            except UnreadableFile as error:
                raise error.at(f"document {document}") from None
            if len(text) == 0:
                fix = "run `roots preprocess --pairs` again"
                raise RootsError(
                    problem(f"{side.prefix} document {document}", None, "is empty", fix)
                )
            low, high = int(text.min()), int(text.max())
            if low < 0 or high >= self._vocab_size:
                bad = low if low < 0 else high
                raise vocabulary_error(side.prefix, bad, self._vocab_size)
            texts.append(text)
        return texts[0], texts[1]

    def _tell_cuts(self) -> None:
        for side, limit in zip(self._sides, self._limits, strict=True):
            count = int((np.diff(side.document_starts(self._documents)) > limit).sum())
            if count:
                total = len(self._documents)
                _logger.info(
                    "%s: %d of %d texts are longer than %d tokens and are cut",
                    side.prefix,
                    count,
                    total,
                    limit,
                )


class PairBatches:
    """Micro-batches of pairs from one or several datasets, in proportion to their weights.

    With `group_batches` W > 1 the samples of W consecutive global batches are sorted by length and
    cut into W batches again, which then come in a random order: little padding, equal samples.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        num_samples: int,
        global_batch_size: int,
        shape: PairShape,
        begin: int,
        seed: int,
        vocab_size: int,
        first: int = 0,
        group_batches: int = 1,
        cache_directory: str | Path | None = None,
    ) -> None:
        """Open the blend. Raises RootsError as `PairDataset`, and where a cache cannot be written.

        begin: the token from which the decoder starts to write; first: the sample of the order that
        is sample 0 of step 0.
        """
        assert first == 0 or group_batches == 1, "batches of another size are other groups"
        self._datasets = [
            PairDataset(source, shape=shape, seed=seed, vocab_size=vocab_size) for source in sources
        ]
        self._group_size = group_batches * global_batch_size
        # Whole groups, so that the last ones do not depend on where the run ends.
        num_samples = first + -(-num_samples // self._group_size) * self._group_size
        weights = [source.weight for source in sources]
        folder = cache_folder(sources[0].indexed.prefix, cache_directory)
        self._index: BlendIndex | None = blend_index(weights, num_samples, folder)
        self._first = first
        self._global_batch_size = global_batch_size
        self._group_batches = group_batches
        self._shape = shape
        self._begin = begin
        self._seed = seed
        # The last groups that were sorted: a group serves many steps.
        self._sorted = functools.lru_cache(maxsize=2)(self._sort_group)

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        """Read the pairs at `places` of step `step`."""
        samples = self._samples(step)
        texts = [dataset[sample] for dataset, sample in (samples[place] for place in places)]
        longest = (0, 0)
        if self._shape.multiple is not None:
            # Of the global batch, so that it is equal on every rank.
            lengths = [dataset.lengths(sample) for dataset, sample in samples]
            longest = (max(a for a, _ in lengths), max(b for _, b in lengths))
        return sequence_batch(
            [source for source, _ in texts],
            [target for _, target in texts],
            dropout_keys(self._seed, step, places),
            begin=self._begin,
            shape=self._shape.of(longest),
        )

    def _samples(self, step: int) -> list[tuple[PairDataset, int]]:
        """Return dataset and sample at every place of a step."""
        group, number = divmod(step, self._group_batches)
        if self._group_batches > 1:
            key = derive_key(self._seed, "groups", group)
            first = place_in_order(key, self._group_batches, number) * self._global_batch_size
            return self._sorted(group)[first : first + self._global_batch_size]
        first = step * self._global_batch_size
        return [self._at(first + place) for place in range(self._global_batch_size)]

    def _sort_group(self, group: int) -> list[tuple[PairDataset, int]]:
        """Return the samples of a group by the lengths of target and source."""
        first = group * self._group_size
        samples = [self._at(first + place) for place in range(self._group_size)]
        return sorted(samples, key=lambda pair: pair[0].lengths(pair[1])[::-1])

    def _at(self, number: int) -> tuple[PairDataset, int]:
        which, sample = place_of(self._index, self._first + number)
        return self._datasets[which], sample
