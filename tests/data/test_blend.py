"""Several datasets as one stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from roots.data.blend import Blend, Source
from roots.data.indexed import IndexedDataset
from roots.errors import RootsError


@pytest.fixture
def sources(write_dataset):
    """Three datasets whose tokens tell them apart, with weights."""
    weights = (0.5, 0.3, 0.2)
    prefixes = [write_dataset([[i + 1] * 30] * 4, f"set{i}", vocab_size=5) for i in range(3)]
    datasets = [IndexedDataset(prefix) for prefix in prefixes]
    return [Source(data, range(4), weight) for data, weight in zip(datasets, weights)]


def open_blend(sources, num_samples, **options):
    options = {"sequence_length": 4, "seed": 3, "vocab_size": 5, **options}
    return Blend(sources, num_samples=num_samples, **options)


def test_datasets_appear_in_proportion_to_their_weights(sources):
    blend = open_blend(sources, 100)
    origin = [int(blend[i].tokens[0]) for i in range(len(blend))]
    assert [origin.count(i) for i in (1, 2, 3)] == [50, 30, 20]


def test_other_weights_are_another_blend(sources):
    """Though the blend of the former ones lies in the same cache."""
    open_blend(sources, 100)
    others = [replace(each, weight=weight) for each, weight in zip(sources, (0.2, 0.2, 0.6))]
    blend = open_blend(others, 100)
    origin = [int(blend[i].tokens[0]) for i in range(len(blend))]
    assert [origin.count(i) for i in (1, 2, 3)] == [20, 20, 60]


def test_longer_blends_continue_shorter_ones(sources):
    short, long = open_blend(sources, 20), open_blend(sources, 300)
    for i in range(20):
        assert short[i].tokens.tolist() == long[i].tokens.tolist()


def test_an_epoch_of_one_dataset_shows_every_token(numbered):
    indexed = numbered([20, 21])
    blend = open_blend([Source(indexed, range(2))], 11, vocab_size=42)
    tokens = [token for i in range(11) for token in blend[i].tokens[:-1].tolist()]
    assert len(set(tokens)) == 41


def test_no_sample_beyond_the_last(sources):
    blend = open_blend(sources, 7)
    for number in (7, -1):
        with pytest.raises(IndexError):
            blend[number]


def test_token_beyond_the_vocabulary_is_found_at_once(write_dataset):
    prefix = write_dataset([[1, 300, 0]], vocab_size=301)
    with pytest.raises(RootsError) as caught:
        open_blend([Source(IndexedDataset(prefix), range(1))], 1, vocab_size=256)
    assert str(caught.value) == (
        f"{prefix} token id=300: model.vocab_size is 256, so ids go from 0 to 255; "
        "set model.vocab_size to 301 or more, or use the data of another tokenizer"
    )


def test_token_beyond_the_vocabulary_is_found_without_a_side_file(write_dataset):
    prefix = write_dataset([[1, 300, 0]], vocab_size=301)
    Path(f"{prefix}.json").unlink()
    blend = open_blend([Source(IndexedDataset(prefix), range(1))], 1, vocab_size=256)
    with pytest.raises(RootsError) as caught:
        blend[0]
    assert str(caught.value) == (
        f"{prefix} token id=300: model.vocab_size is 256, so ids go from 0 to 255; "
        "set model.vocab_size to 301 or more, or use the data of another tokenizer"
    )
