"""Samples of one dataset."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roots.data import _index
from roots.data.gpt import GPTDataset, split_documents
from roots.data.index import build_epochs, plan_epochs
from roots.data.indexed import IndexedDataset
from roots.errors import RootsError
from roots.seeding import derive_key

T = 4
# Every example writes a dataset of its own, so the shared folder of a fixture does no harm.
per_example = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def open_samples(indexed, num_samples, documents=None, seed=5, sequence_length=T, **options):
    return GPTDataset(
        indexed,
        range(len(indexed)) if documents is None else documents,
        sequence_length=sequence_length,
        num_samples=num_samples,
        seed=seed,
        **options,
    )


@per_example
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    first=st.integers(0, 2),
    size=st.integers(1, 7),
    num_samples=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_samples_are_windows_of_the_stream(numbered, lengths, first, size, num_samples, seed):
    if sum(lengths[first:]) == 0:
        return
    indexed = numbered(lengths)
    documents = range(first, len(lengths))
    epoch_tokens = sum(lengths[first:])
    plan = plan_epochs(epoch_tokens, size, num_samples)
    bounds = [plan.first_sample(epoch) for epoch in range(plan.num_epochs + 1)]
    stream_epochs = -(-(plan.num_samples * size + 1) // epoch_tokens)
    order = _index.document_order(len(documents), stream_epochs, derive_key(seed, "documents"))
    shuffle = _index.shuffle_index(np.array(bounds), derive_key(seed, "samples"))
    stream = [(t, d) for d in order for t in range(*indexed.document_span(first + d))]
    dataset = open_samples(indexed, num_samples, documents, seed, size)
    assert len(dataset) == plan.num_samples >= num_samples
    seen = []
    for i in range(len(dataset)):
        row = int(shuffle[i])
        window = stream[row * size : row * size + size + 1]
        sample = dataset[i]
        assert sample.tokens.tolist() == [token for token, _ in window]
        assert (
            sample.document_starts.tolist()
            == starts_of(row * size, stream, indexed, first)[: size + 1]
        )
        seen.append(row)
    assert sorted(seen) == list(range(len(dataset)))
    for epoch in range(plan.num_epochs):
        tokens = [t for t, _ in stream[epoch * epoch_tokens : (epoch + 1) * epoch_tokens]]
        assert len(set(tokens)) == epoch_tokens, "an epoch shows every token once"


def starts_of(begin, stream, indexed, first):
    """Walk the stream from `begin` on: where does the document of each token start in the row?"""
    starts = []
    for index, (token, document) in enumerate(stream[begin:]):
        is_first = token == indexed.document_span(first + int(document))[0]
        starts.append(index if index == 0 or is_first else starts[-1])
    return starts


def test_document_boundaries_are_those_of_the_dataset(write_dataset):
    indexed = IndexedDataset(write_dataset([[1, 1, 0], [2, 0], [3, 3, 3, 3, 3, 0]]))
    dataset = open_samples(indexed, 1, sequence_length=10)
    sample = dataset[0]
    assert len(sample.tokens) == 11
    after_end = [0] + [t + 1 for t in range(10) if sample.tokens[t] == 0]
    assert sorted(set(sample.document_starts.tolist())) == after_end


def test_another_seed_gives_another_order(numbered):
    indexed = numbered([50, 60, 70, 80])
    orders = [
        [open_samples(indexed, 60, seed=seed)[i].tokens[0] for i in range(60)] for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_sample_does_not_depend_on_how_many_follow(numbered):
    indexed = numbered([13, 7, 21])
    few, many = open_samples(indexed, 5), open_samples(indexed, 100)
    for i in range(len(few)):
        assert few[i].tokens.tolist() == many[i].tokens.tolist()


def test_samples_do_not_leave_their_split(numbered):
    indexed = numbered([10, 10, 10, 10])
    dataset = open_samples(indexed, 30, documents=range(2, 3))
    for i in range(30):
        assert {int(token) // 10 for token in dataset[i].tokens} == {2}


@pytest.fixture
def large(monkeypatch):
    """Take the epochs of any dataset for large ones, which are cached one by one."""
    monkeypatch.setattr("roots.data.index.BLOCK_ENTRIES", 1)


def test_epochs_made_together_and_one_by_one_give_the_same_samples(numbered, monkeypatch):
    indexed = numbered([13, 0, 7, 21])
    together = open_samples(indexed, 100)
    monkeypatch.setattr("roots.data.index.BLOCK_ENTRIES", 31)
    two = open_samples(indexed, 100)
    monkeypatch.setattr("roots.data.index.BLOCK_ENTRIES", 1)
    alone = open_samples(indexed, 100)
    for number in range(len(together)):
        expected = together[number]
        for dataset in (two, alone):
            assert dataset[number].tokens.tolist() == expected.tokens.tolist()
            assert dataset[number].document_starts.tolist() == expected.document_starts.tolist()


def test_memory_does_not_grow_with_steps(numbered):
    indexed = numbered([3])
    tracemalloc.start()
    dataset = open_samples(indexed, 8 * 10**6, sequence_length=64)
    for number in (0, 4 * 10**6, 8 * 10**6 - 1):
        assert sorted(set(dataset[number].tokens.tolist())) == [0, 1, 2]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6, "it was 1.4 GB"


def test_small_datasets_need_no_cache(numbered, tmp_path):
    open_samples(numbered([10, 20]), 3)
    assert not (tmp_path / "index-cache").exists()


def test_sequence_order_is_megatrons(numbered, megatron_helpers):
    lengths = [5, 1, 9, 3, 12]
    indexed, size, epochs = numbered(lengths), 4, 3
    dataset = open_samples(indexed, 20, seed=2)
    order = _index.document_order(len(lengths), epochs, derive_key(2, "documents"))
    rows = megatron_helpers.build_sample_idx(
        np.array(lengths, dtype=np.int32), order.astype(np.int32), size, epochs, 30, True, 1
    )
    bounds = [dataset._plan.first_sample(epoch) for epoch in range(epochs)]
    shuffle = _index.shuffle_index(np.array(bounds), derive_key(2, "samples"))
    for number, row in enumerate(shuffle.tolist()):
        position, offset = rows[row].tolist()
        first = indexed.document_span(int(order[position]))[0] + offset
        assert dataset[number].tokens[0] == first


def test_index_is_built_once_and_again_for_another_dataset(numbered, tmp_path, monkeypatch, large):
    built = []
    real = build_epochs
    monkeypatch.setattr(
        "roots.data.gpt.build_epochs",
        lambda *arguments: built.append(1) or real(*arguments),
    )
    indexed = numbered([10, 20])
    open_samples(indexed, 3)
    open_samples(indexed, 400)  # the same first epoch
    assert len(built) == 1
    open_samples(indexed, 3, seed=6)
    assert len(built) == 2
    open_samples(numbered([20, 10]), 3)
    assert len(built) == 3
    assert len(list((tmp_path / "index-cache").glob("*.json"))) == 3


def test_a_cached_order_is_read_for_what_it_was_made_for_alone(numbered, tmp_path, large):
    """Beside orders of other seeds, splits and lengths, each run gets the one it gets alone."""
    indexed = numbered([10, 20, 15, 25])
    kinds = (
        {},
        {"seed": 6},
        {"documents": range(2)},
        {"documents": range(2, 4)},
        {"sequence_length": 5},
    )
    for number, kind in enumerate(kinds):
        alone = open_samples(indexed, 9, cache_directory=tmp_path / f"alone{number}", **kind)
        beside = open_samples(indexed, 9, cache_directory=tmp_path / "shared", **kind)
        assert [beside[i].tokens.tolist() for i in range(9)] == [
            alone[i].tokens.tolist() for i in range(9)
        ]


def test_cache_directory_is_used(numbered, tmp_path, large):
    open_samples(numbered([10, 20]), 3, cache_directory=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("*.shuffle.npy"))) == 1
    assert not (tmp_path / "index-cache").exists()


def test_read_only_cache_that_is_complete_is_enough(numbered, tmp_path, large):
    indexed = numbered([10, 20])
    open_samples(indexed, 3)[0]
    for path in (tmp_path / "index-cache").iterdir():
        if path.suffix == ".lock":
            path.unlink()
            os.mkdir(path)  # opening it as a file would fail
    assert open_samples(indexed, 3)[0].tokens.shape == (T + 1,)


def test_split_without_tokens(numbered):
    indexed = numbered([3, 0, 4])
    with pytest.raises(RootsError) as caught:
        open_samples(indexed, 3, documents=range(1, 2))
    assert str(caught.value) == (
        f"{indexed.prefix}: documents 1 to 2 hold no tokens; "
        "change data.split, or give data.valid a dataset of its own"
    )


@per_example
@given(
    count=st.integers(0, 5000),
    weights=st.tuples(st.floats(0, 1000), st.floats(0, 100), st.floats(0.1, 10)),
)
def test_split_cuts_all_documents_in_three(count, weights):
    train, valid, test = split_documents(count, weights)
    assert [*train, *valid, *test] == list(range(count))
    for part, weight in zip((train, valid, test), weights):
        assert abs(len(part) - count * weight / sum(weights)) <= 1.0 + 1e-6


@pytest.fixture(scope="module")
def megatron_helpers():
    """Megatron-core's own index builders."""
    return pytest.importorskip(
        "megatron.core.datasets.helpers",
        reason="megatron-core is not installed (`pip install megatron-core`)",
        exc_type=ImportError,
    )


@pytest.fixture(scope="module")
def megatron_config():
    """Megatron-core's own splitting."""
    return pytest.importorskip(
        "megatron.core.datasets.blended_megatron_dataset_config",
        reason="megatron-core is not installed (`pip install megatron-core`)",
        exc_type=ImportError,
    )


def test_split_equals_megatrons(megatron_config):
    vector = megatron_config.parse_and_normalize_split("969,30,1")
    matrix = megatron_config.convert_split_vector_to_split_matrix(vector)
    for count in (1, 7, 168, 1000, 12345):
        theirs = [range(round(a * count), round(b * count)) for a, b in matrix]
        assert list(split_documents(count, (969.0, 30.0, 1.0))) == theirs


def test_reading_a_sample_touches_only_its_documents(numbered, monkeypatch):
    indexed = numbered([3] * 500)
    dataset = open_samples(indexed, 100)
    touched = []
    real = IndexedDataset.document_span
    monkeypatch.setattr(
        IndexedDataset, "document_span", lambda self, d: touched.append(d) or real(self, d)
    )
    dataset[17]
    assert len(touched) <= 3
    assert np.all(np.diff(dataset[17].document_starts) >= 0)
