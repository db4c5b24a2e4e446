"""The compiled index builders, against slow references and against Megatron-core's."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roots.data import _index
from roots.data.index import BLOCK_ENTRIES, build_blend_index, build_epochs, plan_epochs
from roots.errors import RootsError
from roots.seeding import derive_key


@pytest.fixture(scope="module")
def megatron_helpers():
    """Megatron-core's own index builders."""
    return pytest.importorskip(
        "megatron.core.datasets.helpers",
        reason="megatron-core is not installed (`pip install megatron-core`)",
        exc_type=ImportError,
    )


MASK = 2**64 - 1
keys = st.integers(-(2**63), 2**63 - 1)
lengths_lists = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)
bounded = settings(max_examples=60, deadline=None)


def random_bits(key: int, counter: int) -> int:
    state = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def permuted(values: list[int], key: int) -> list[int]:
    values = list(values)
    for i in range(len(values) - 1, 0, -1):
        j = (random_bits(key, i) * (i + 1)) >> 64
        values[i], values[j] = values[j], values[i]
    return values


def shortfall_blend(weights: list[float], num_samples: int) -> list[tuple[int, int]]:
    total = 0.0
    for weight in weights:
        total += weight
    shares = [weight / total for weight in weights]
    taken = [0] * len(weights)
    blend = []
    for sample in range(num_samples):
        due = float(max(sample, 1))
        errors = [share * due - count for share, count in zip(shares, taken)]
        chosen = errors.index(max(errors))
        blend.append((chosen, taken[chosen]))
        taken[chosen] += 1
    return blend


@bounded
@given(documents=st.integers(1, 40), epochs=st.integers(1, 4), key=keys)
def test_document_order_equals_the_reference(documents, epochs, key):
    order = _index.document_order(documents, epochs, key)
    expected = []
    for epoch in range(epochs):
        expected += permuted(list(range(documents)), random_bits(key, epoch))
    assert order.dtype == np.int64
    assert order.tolist() == expected


def test_document_order_is_the_same_on_every_platform():
    assert _index.document_order(10, 2, 1234).tolist() == [
        *permuted(list(range(10)), random_bits(1234, 0)),
        *permuted(list(range(10)), random_bits(1234, 1)),
    ]
    assert _index.document_order(6, 1, 7).tolist() == [0, 3, 4, 2, 5, 1]


def test_permutations_are_uniform():
    # 24 orders of 4 documents in 24,000 epochs: chi-square with 23 degrees of freedom.
    orders = _index.document_order(4, 24_000, 99).reshape(-1, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 49.7  # the 0.1 % tail


@bounded
@given(steps=st.lists(st.integers(0, 9), min_size=1, max_size=6), key=keys)
def test_shuffle_stays_within_epochs(steps, key):
    bounds = np.cumsum([0, *steps])
    shuffled = _index.shuffle_index(bounds, key).tolist()
    expected = []
    for epoch, (first, last) in enumerate(zip(bounds, bounds[1:])):
        expected += permuted(list(range(first, last)), random_bits(key, epoch))
    assert shuffled == expected


@bounded
@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), num_samples=st.integers(0, 60)
)
def test_blend_equals_the_reference(weights, num_samples):
    dataset, sample = build_blend_index(weights, num_samples)
    assert list(zip(dataset.tolist(), sample.tolist())) == shortfall_blend(weights, num_samples)


def test_blend_keeps_to_its_shares_at_every_point():
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    dataset, sample = build_blend_index(weights.tolist(), 5000)
    taken = np.cumsum(dataset[:, None] == np.arange(4), axis=0)
    due = weights * np.arange(1, 5001)[:, None]
    assert np.abs(taken - due).max() <= 2.0
    for which in range(4):
        assert sample[dataset == which].tolist() == list(range(taken[-1, which]))


@bounded
@given(tokens=st.integers(1, 60), size=st.integers(1, 20), num_samples=st.integers(1, 40))
def test_epoch_plan_counts_the_samples_that_start_in_each_epoch(tokens, size, num_samples):
    plan = plan_epochs(tokens, size, num_samples)
    epochs = [sample * size // tokens for sample in range(plan.num_samples + 1)]
    assert [plan.epoch_of(sample) for sample in range(plan.num_samples + 1)] == epochs
    bounds = [plan.first_sample(epoch) for epoch in range(plan.num_epochs + 1)]
    for epoch, (first, last) in enumerate(zip(bounds, bounds[1:])):
        assert epochs[first:last] == [epoch] * (last - first)
    assert epochs[-1] >= plan.num_epochs, "the sample after the last starts in a later epoch"
    assert plan.num_samples >= num_samples
    assert bounds[-2] < num_samples, "an epoch more than needed"


@bounded
@given(
    lengths=lengths_lists,
    size=st.integers(1, 9),
    first=st.integers(0, 40),
    count=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_epochs_made_by_themselves_equal_those_made_from_the_first_on(
    lengths, size, first, count, seed
):
    tokens = sum(lengths)
    plan = plan_epochs(tokens, size, 1, len(lengths))
    arrays = build_epochs(np.array(lengths), plan, range(first, first + count), seed)
    order = _index.document_order(len(lengths), first + count, derive_key(seed, "documents"))
    order = order[first * len(lengths) :]
    assert arrays.order.tolist() == order.tolist()
    ends = [np.cumsum(np.array(lengths)[epoch]) for epoch in order.reshape(count, -1)]
    assert arrays.ends.tolist() == np.concatenate(ends).tolist()
    bounds = np.array([-(-epoch * tokens // size) for epoch in range(first + count + 1)])
    shuffle = _index.shuffle_index(bounds, derive_key(seed, "samples"))
    begin = plan.first_sample(first)
    assert (arrays.shuffle + begin).tolist() == shuffle[begin:].tolist()


def test_epochs_far_away_cost_no_more():
    # Three tokens, seen for a million steps of a million sequences.
    plan = plan_epochs(3, 64, 10**12)
    assert plan.num_epochs == (10**12 - 1) * 64 // 3 + 1
    epochs = plan.block(plan.num_epochs // plan.epochs_per_block)
    arrays = build_epochs(np.array([3]), plan, epochs, seed=1)
    assert len(arrays.order) == len(arrays.ends) == len(epochs) <= BLOCK_ENTRIES
    samples = plan.first_sample(epochs.stop) - plan.first_sample(epochs.start)
    assert sorted(arrays.shuffle.tolist()) == list(range(samples))


@bounded
@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_blend_equals_megatrons(megatron_helpers, weights):
    total = 0.0
    for weight in weights:
        total += weight
    shares = np.array(weights) / total
    dataset, sample = np.zeros(200, dtype=np.int16), np.zeros(200, dtype=np.int64)
    megatron_helpers.build_blending_indices(dataset, sample, shares, len(weights), 200, False)
    ours = build_blend_index(weights, 200)
    assert ours[0].tolist() == dataset.tolist()
    assert ours[1].tolist() == sample.tolist()


def test_offsets_beyond_32_bits():
    # Documents of 2^40 tokens: only counted, never read.
    plan = plan_epochs(3 * 2**40, 2**39, 5, 3)
    arrays = build_epochs(np.full(3, 2**40), plan, range(1), seed=0)
    assert arrays.ends.tolist() == [2**40, 2**41, 3 * 2**40]
    assert plan.num_samples == 6


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: _index.document_order(0, 1, 0), "needs at least one document"),
        (lambda: _index.document_order(1, 0, 0), "needs at least one epoch"),
        (lambda: _index.document_order(2**40, 2**40, 0), "is too large"),
        (lambda: _index.shuffle_index(np.array([0, 5, 3]), 0), "must not decrease"),
        (lambda: _index.shuffle_index(np.array([1, 5]), 0), "first bound must be 0"),
        (lambda: _index.blend_index(np.array([1.0, 0.0]), 3), "positive and finite"),
        (lambda: _index.blend_index(np.array([np.nan]), 3), "positive and finite"),
    ],
)
def test_impossible_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_arrays_of_another_type_are_refused():
    with pytest.raises(TypeError):
        _index.shuffle_index(np.zeros(2, np.float64), 1)


def test_missing_extension_says_how_to_build_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "roots.data._index", None)
    monkeypatch.delattr("roots.data._index")
    with pytest.raises(RootsError) as caught:
        build_blend_index([1.0], 1)
    assert "roots.data._index: the compiled extension cannot be loaded (" in str(caught.value)
    assert str(caught.value).endswith(
        "; run `python setup.py build_ext --inplace`, or install the package again"
    )
