"""Batches that go back and jump over samples."""

from __future__ import annotations

import torch

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.data.batch import Batch
from roots.data.loader import StepReader, TrainSource
from roots.training.anomalies.stream import BatchStream

SIZE, STEPS = 4, 6


class Numbers:
    """Batches that say which step of the data they are of."""

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        """Whatever the places."""
        number = torch.tensor([step])
        return Batch(number, number, number.float(), number, number, number, number)


def source(workers: int = 0) -> TrainSource:
    training = {"micro_batch_size": SIZE, "global_batch_size": SIZE, "steps": STEPS}
    plan = plan_batch(parse_config({"training": training}), 1)
    return TrainSource(StepReader(Numbers(), plan, 0, num_steps=STEPS), workers)


def taken(stream: BatchStream, count: int) -> list[tuple[int, int]]:
    """(Step of the data, samples consumed after it) of the next items."""
    items = [next(stream) for _ in range(count)]
    return [(int(batches[0].tokens_BT), state.consumed_samples) for batches, state in items]


def test_goes_back_and_jumps_over_exactly_the_skipped_samples() -> None:
    for workers in (0, 1):
        stream = BatchStream(source(workers), 0, [])
        assert taken(stream, 4) == [(0, 4), (1, 8), (2, 12), (3, 16)]
        stream.go_to(8, [(12, 16)])
        assert taken(stream, 2) == [(2, 12), (4, 20)]
        # As many steps as without a jump, from later data.
        stream.go_to(8, [(12, 16), (20, 24)])
        assert [step for step, _ in taken(stream, 4)] == [2, 4, 6, 7]
        assert next(stream, None) is None
        assert stream.seconds >= 0.0


def test_a_run_that_goes_on_jumps_over_what_is_still_to_come() -> None:
    """What lies behind it counts only for how many steps are left."""
    stream = BatchStream(source(), 16, [(4, 8), (20, 24)])
    assert [step for step, _ in taken(stream, 3)] == [4, 6, 7]
    assert next(stream, None) is None
