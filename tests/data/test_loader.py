"""Steps of a run: determinism, resume, independence of the layout."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from roots.config.batch import BatchPlan
from roots.data.batch import Batch, DocumentRules
from roots.data.blend import Blend, Source
from roots.data.loader import StepReader, TrainSource, ValidSource
from roots.data.objectives.causal import CausalBatches
from roots.data.sampler import DataState

SIZE, STEPS, VOCAB_SIZE = 12, 6, 400


@pytest.fixture
def blend(numbered):
    """Two datasets, several epochs of each."""
    sources = [
        Source(numbered([13, 40, 8, 22], "a"), range(4), 2.0),
        Source(numbered([31, 17], "b"), range(2), 1.0),
    ]
    return Blend(
        sources,
        sequence_length=8,
        num_samples=STEPS * SIZE,
        seed=11,
        vocab_size=VOCAB_SIZE,
    )


def reader_of(blend, data_parallel=1, micro=12, rank=0):
    plan = BatchPlan(data_parallel, micro, SIZE // (micro * data_parallel), SIZE)
    maker = CausalBatches(blend, global_batch_size=SIZE, rules=DocumentRules(), seed=11)
    return StepReader(maker, plan, rank, num_steps=STEPS)


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


def rows_of(batches):
    """Every sample of micro-batches as one comparable value."""
    return {
        tuple(tuple(tensor[row].reshape(-1).tolist()) for tensor in batch)
        for batch in batches
        for row in range(len(batch.tokens_BT))
    }


def test_runs_are_equal_and_end_after_their_steps(blend):
    first, second = (list(TrainSource(reader_of(blend)).iterate()) for _ in range(2))
    assert len(first) == STEPS
    for (batches, state), (others, other_state) in zip(first, second):
        assert state == other_state
        assert all(equal(a, b) for a, b in zip(batches, others))


@pytest.mark.parametrize("data_parallel, micro", [(1, 1), (1, 4), (2, 3), (3, 2), (4, 1), (12, 1)])
def test_samples_of_a_step_are_the_same_on_every_layout(blend, data_parallel, micro):
    for step in range(STEPS):
        together = rows_of(reader_of(blend).read(step))
        assert len(together) == SIZE
        shares = [
            rows_of(reader_of(blend, data_parallel, micro, rank).read(step))
            for rank in range(data_parallel)
        ]
        assert set.union(*shares) == together
        assert sum(map(len, shares)) == SIZE


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_resume_continues_with_the_state_of_the_last_step(blend, num_workers):
    source = TrainSource(reader_of(blend, micro=4), num_workers)
    whole = list(source.iterate())
    head = list(itertools.islice(source.iterate(), 2))
    state = head[-1][1]
    assert state.consumed_samples == 2 * SIZE
    # Resumed on another layout: rank 0 of 2 reads its share of the same samples.
    tail = list(source.iterate(state.next_step(SIZE)))
    assert len(head) + len(tail) == len(whole)
    for (batches, state), (others, other_state) in zip(whole, [*head, *tail]):
        assert state == other_state
        assert all(equal(a, b) for a, b in zip(batches, others))


def test_reading_ahead_is_bounded_and_the_state_is_that_of_the_item(blend):
    read = []
    reader = reader_of(blend)
    real = reader.read
    reader.read = lambda step: read.append(step) or real(step)
    steps = TrainSource(reader, num_workers=1).iterate()
    _, state = next(steps)
    assert state.consumed_samples == SIZE
    assert max(read) <= 2
    steps.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("roots-data")]


def test_errors_of_a_reading_thread_reach_the_consumer(blend):
    reader = reader_of(blend)

    def fail(step):
        raise ValueError(f"step {step}")

    reader.read = fail
    with pytest.raises(ValueError, match="step 0"):
        next(TrainSource(reader, num_workers=1).iterate())


def test_stage_without_data_still_counts_steps():
    plan = BatchPlan(1, 4, 3, SIZE)
    reader = StepReader(None, plan, 0, num_steps=3)
    items = list(TrainSource(reader).iterate(1))
    assert [(batches, state.consumed_samples) for batches, state in items] == [([], 24), ([], 36)]


def test_every_evaluation_reads_the_same(blend):
    source = ValidSource(reader_of(blend, micro=4))
    first, second = list(source.batches(2)), list(source.batches(2))
    assert len(first) == 2
    assert all(equal(a, b) for x, y in zip(first, second) for a, b in zip(x, y))
    assert len(list(source.batches())) == STEPS
    assert len(list(source.batches(100))) == STEPS


def test_a_phase_counts_its_steps_from_its_first_sample(blend):
    """And its samples from the start of the run; what was skipped before it is of no account."""
    whole = list(TrainSource(reader_of(blend)).iterate())
    source = TrainSource(reader_of(blend), state=DataState(42, 30))
    assert [source.step_after(consumed) for consumed in (30, 42, 54)] == [0, 1, 2]
    skipped = [(6, 18), (18, 30), (54, 66)]
    phase = list(itertools.islice(source.iterate(source.step_after(42), skipped), 2))
    assert [state for _, state in phase] == [DataState(54, 30), DataState(78, 30)]
    for step, (batches, _) in zip((1, 3), phase):
        assert all(equal(a, b) for a, b in zip(batches, whole[step][0], strict=True))


def test_steps_of_another_size_begin_wherever_a_run_stands(numbered):
    """Behind 28 samples, in steps of 12: the blend read from its sample 4 on."""
    data = [Source(numbered([13, 40, 8, 22], "a"), range(4)), Source(numbered([31], "b"), range(1))]
    options = {"sequence_length": 8, "seed": 11, "vocab_size": VOCAB_SIZE}
    state = DataState(28)
    late = Blend(data, num_samples=STEPS * SIZE, first=state.left_over(SIZE), **options)
    whole = Blend(data, num_samples=STEPS * SIZE + 4, **options)
    source = TrainSource(reader_of(late), state=state)
    (batches, after), *_ = source.iterate(source.step_after(28))
    assert after == DataState(40)
    rows = [row.tolist() for batch in batches for row in batch.tokens_BT]
    assert rows == [whole[number].tokens[:-1].tolist() for number in range(28, 40)]
