"""Batches of a run: one item a step, with the state that continues behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from roots.config.batch import BatchPlan
from roots.data.batch import Batch
from roots.data.sampler import DataState, SampleRange, places_in_step

_STEPS_AHEAD = 2
Item = TypeVar("Item")


class BatchMaker(Protocol):
    """Makes the micro-batches of an objective, each a pure function of its arguments."""

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        """Return the samples at `places` (0 .. global batch size - 1) of step `step`."""


class StepReader:
    """Reads the micro-batches of any of `num_steps` steps, for one data-parallel rank."""

    def __init__(
        self, maker: BatchMaker | None, plan: BatchPlan, data_rank: int, *, num_steps: int
    ) -> None:
        """Keep what stays the same over the steps; nothing is read yet.

        Without a maker (a pipeline stage that needs no data) every step is an empty list.
        """
        self.global_batch_size = plan.global_batch_size
        self.num_steps = num_steps
        self._maker = maker
        self._places = places_in_step(plan, data_rank)

    def read(self, step: int) -> list[Batch]:
        """Read the micro-batches of step `step`, a pure function of it."""
        if self._maker is None:
            return []
        return [self._maker.make(step, places) for places in self._places]


class TrainSource:
    """The training data: an iterator over steps, from any of them on.

    Steps count from the start of the phase of the data (see `DataState.left_over`); samples, here
    and in `DataState`, from the start of the run.
    """

    def __init__(
        self, reader: StepReader, num_workers: int = 0, state: DataState | None = None
    ) -> None:
        """Read one step at a time; with workers, a few steps ahead in that many threads.

        state: one that the run has been in or begins with.
        """
        self._reader = reader
        self._num_workers = num_workers
        state = DataState() if state is None else state
        self._phase = state.first_sample
        # The first sample of step 0.
        self._first = state.first_sample + state.left_over(reader.global_batch_size)

    @property
    def num_steps(self) -> int:
        """How many steps there are in the phase."""
        return self._reader.num_steps

    def step_after(self, consumed_samples: int) -> int:
        """The step that follows so many samples."""
        steps, rest = divmod(consumed_samples - self._first, self._reader.global_batch_size)
        assert rest == 0, "no step ends there"
        return steps

    def iterate(
        self, start_step: int = 0, skipped: Sequence[SampleRange] = ()
    ) -> Iterator[tuple[list[Batch], DataState]]:
        """Yield (micro-batches of the step, state after it) from `start_step` to the last step.

        The state belongs to its item: it says what is consumed once this step is done, however
        far has been read ahead. `step_after` turns it into a start step. Steps with
        samples that are `skipped` ([first, behind the last)) are jumped over, and as many follow.
        """
        size, first = self._reader.global_batch_size, self._first
        wanted = self._reader.num_steps
        inside = [(a - first, b - first) for a, b in skipped if b > first]
        jumped = {step for a, b in inside for step in range(a // size, -(-b // size))}
        steps = (step for step in range(start_step, wanted + len(jumped)) if step not in jumped)
        for step, batches in _read(self._reader.read, steps, self._num_workers):
            yield batches, DataState(first + (step + 1) * size, self._phase)


class ValidSource:
    """The held-out data: the same batches every time they are asked for."""

    def __init__(self, reader: StepReader) -> None:
        """Keep the reader; nothing is read yet."""
        self._reader = reader

    def batches(self, num_steps: int | None = None) -> Iterator[list[Batch]]:
        """Yield the micro-batches of the first `num_steps` global batches (None: of all)."""
        available = self._reader.num_steps
        for step in range(available if num_steps is None else min(num_steps, available)):
            yield self._reader.read(step)


def _read(
    read: Callable[[int], Item], steps: Iterable[int], num_workers: int
) -> Iterator[tuple[int, Item]]:
    """Yield (step, what was read) in order; with workers, threads read ahead."""
    if num_workers == 0:
        yield from ((step, read(step)) for step in steps)
        return
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="roots-data")
    waiting: deque[tuple[int, Future[Item]]] = deque()
    try:
        for step in steps:
            waiting.append((step, executor.submit(read, step)))
            if len(waiting) > _STEPS_AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        # Also when the consumer leaves early: no thread outlives the iterator.
        executor.shutdown(wait=True, cancel_futures=True)
