"""Which samples a rank reads in a step: arithmetic on (step, rank), without any state.

Step n of the run is samples n * G to n * G + G - 1 of the blend, on every layout; the layout only
says who reads which of them. With micro-batch size m and D data-parallel ranks, rank d reads in
its micro-batch a the samples

    (a * D + d) * m + r    for r = 0 .. m - 1

of the step: micro-batches are dealt to the ranks one after the other.

A later phase of the data (`data.phase`) counts steps and samples from its own start, and draws by a
seed of its own: what is read is a function of the seed, the phase and the number in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.batch import BatchPlan
from roots.seeding import derive_key

# Samples by their numbers in the order of the run: the first, and the one behind the last.
SampleRange = tuple[int, int]


@dataclass(frozen=True)
class DataState:
    """How far a run has consumed its data. Stored in checkpoints, valid on every layout.

    `first_sample`: how far it had when its phase of the data began. Where a run has changed its
    global batch size, its steps count from `left_over` samples behind that.
    """

    consumed_samples: int = 0
    first_sample: int = 0

    def next_step(self, global_batch_size: int) -> int:
        """Return the step of the phase to continue with."""
        return (self.consumed_samples - self.first_sample) // global_batch_size

    def left_over(self, global_batch_size: int) -> int:
        """Return how many samples of the phase came before its step 0, of batches of this size.

        Equal after every step of that size, so that a run may stop and go on anywhere.
        """
        return (self.consumed_samples - self.first_sample) % global_batch_size


def seed_of_phase(seed: int, phase: int) -> int:
    """The seed of all that is drawn in a phase, so that none reads the same files as another did.

    That of the run in phase 0.
    """
    return seed if phase == 0 else derive_key(seed, "data.phase", phase)


@dataclass(frozen=True)
class Order:
    """Samples in the order that `seed` gives them: `num_samples` of them from `first` on."""

    seed: int
    num_samples: int
    first: int = 0


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
