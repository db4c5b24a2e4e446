"""The batches of a run, which can go back, and jump over samples that made its numbers bad."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from roots.data.batch import Batch
from roots.data.loader import TrainSource
from roots.data.sampler import DataState, SampleRange


class BatchStream:
    """An iterator over (micro-batches of a step, state after it); see TrainSource.iterate.

    `seconds` is how long the last item was waited for.
    """

    def __init__(
        self,
        source: TrainSource,
        consumed_samples: int,
        skipped: Sequence[SampleRange],
    ) -> None:
        self._source = source
        self.seconds = 0.0
        self.go_to(consumed_samples, skipped)

    def go_to(self, consumed_samples: int, skipped: Sequence[SampleRange]) -> None:
        """Let the next item be that after `consumed_samples`, jumping over `skipped` ones."""
        start = self._source.step_after(consumed_samples)
        self._items = self._source.iterate(start, skipped)

    def __iter__(self) -> Iterator[tuple[list[Batch], DataState]]:
        return self

    def __next__(self) -> tuple[list[Batch], DataState]:
        began = time.perf_counter()
        item = next(self._items)
        self.seconds = time.perf_counter() - began
        return item
