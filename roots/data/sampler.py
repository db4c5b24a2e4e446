"""Which samples a rank reads in a step: arithmetic on (step, rank), without any state.

Step n of the run is samples n * G to n * G + G - 1 of the blend, on every layout; the layout only
says who reads which of them. With micro-batch size m and D data-parallel ranks, rank d reads in
its micro-batch a the samples

    (a * D + d) * m + r    for r = 0 .. m - 1

of the step: micro-batches are dealt to the ranks one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.batch import BatchPlan
from roots.errors import RootsError, problem
from roots.seeding import derive_key

# Samples by their numbers in the order of the run: the first, and the one behind the last.
SampleRange = tuple[int, int]


@dataclass(frozen=True)
class DataState:
    """How far a run has consumed its data. Stored in checkpoints, valid on every layout."""

    consumed_samples: int = 0

    def next_step(self, global_batch_size: int) -> int:
        """Return the step to continue with.

        Raises RootsError where a changed global batch size does not divide what was consumed.
        """
        if self.consumed_samples % global_batch_size:
            rule = f"must divide the {self.consumed_samples} samples consumed so far"
            fix = "resume with the former size or another divisor"
            raise RootsError(problem("training.global_batch_size", global_batch_size, rule, fix))
        return self.consumed_samples // global_batch_size


def places_in_step(plan: BatchPlan, data_rank: int) -> tuple[tuple[int, ...], ...]:
    """Return, for each micro-batch of a rank, the places 0 .. G - 1 of its samples in the step."""
    assert 0 <= data_rank < plan.data_parallel, "no such data-parallel rank"
    size = plan.micro_batch_size
    firsts = [
        (accumulated * plan.data_parallel + data_rank) * size
        for accumulated in range(plan.accumulation)
    ]
    return tuple(tuple(range(first, first + size)) for first in firsts)


def dropout_keys(seed: int, step: int, places: tuple[int, ...], use: str = "dropout") -> list[int]:
    """Return the key of every sample: a function of the seed, the step and its place in it."""
    return [derive_key(seed, use, step, place) for place in places]
