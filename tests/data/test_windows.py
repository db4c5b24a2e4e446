"""A whole dataset, each token predicted once."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.data.batch import DocumentRules
from roots.data.indexed import IndexedDataset
from roots.data.windows import iterate_windows, num_windows
from roots.errors import RootsError


def windows(indexed, size, batch_size, vocab_size=100, rules=None, **ranks):
    return list(
        iterate_windows(
            indexed,
            sequence_length=size,
            batch_size=batch_size,
            vocab_size=vocab_size,
            rules=rules or DocumentRules(),
            **ranks,
        )
    )


def predicted(items):
    """Pairs of (token, label) with weight one."""
    return [
        (int(token), int(label))
        for item in items
        for token, label, weight in zip(
            item.batch.tokens_BT.reshape(-1),
            item.batch.labels_BT.reshape(-1),
            item.batch.loss_weights_BT.reshape(-1),
        )
        if weight == 1.0
    ]


@pytest.mark.parametrize("lengths", [[23], [24], [25], [5, 0, 7, 13], [2], [1]])
@pytest.mark.parametrize("size, batch_size", [(8, 2), (6, 1), (40, 3), (1, 4)])
@pytest.mark.parametrize("data_size", [1, 3])
def test_every_token_is_predicted_once(numbered, lengths, size, batch_size, data_size):
    indexed = numbered(lengths)
    ranks = [
        windows(indexed, size, batch_size, data_rank=rank, data_size=data_size)
        for rank in range(data_size)
    ]
    pairs = sorted(pair for items in ranks for pair in predicted(items))
    assert pairs == [(t, t + 1) for t in range(sum(lengths) - 1)]
    assert len({len(items) for items in ranks}) == 1, "every rank has as many batches"
    assert all(len(item.batch.tokens_BT) == batch_size for items in ranks for item in items)
    assert sum(item.predicted_tokens for items in ranks for item in items) == sum(lengths) - 1


def test_weights_are_the_plain_mask(numbered):
    (item,) = windows(numbered([4, 3]), 10, 1)
    assert item.batch.loss_weights_BT.tolist() == [[1.0] * 6 + [0.0] * 4]
    assert item.batch.document_starts_BT.tolist()[0][:7] == [0, 0, 0, 0, 4, 4, 4]
    assert num_windows(numbered([4, 3]), 10) == 1


def test_document_boundaries_are_relative_to_the_window(numbered):
    items = windows(numbered([5, 0, 6, 2]), 4, 1)
    starts = [item.batch.document_starts_BT.tolist()[0] for item in items]
    assert starts == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 3]]


def test_masked_document_ends_are_not_counted(numbered):
    items = windows(numbered([4, 3, 2]), 4, 2, rules=DocumentRules(mask_document_end=True))
    assert sorted(predicted(items)) == [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (7, 8)]
    assert sum(item.predicted_tokens for item in items) == 6


def test_token_beyond_the_vocabulary(write_dataset):
    prefix = write_dataset([[1, 99, 0]])
    message = (
        f"{prefix} token id=99: model.vocab_size is 50, so ids go from 0 to 49; "
        "set model.vocab_size to 100 or more, or use the data of another tokenizer"
    )
    for _ in range(2):
        with pytest.raises(RootsError) as caught:
            windows(IndexedDataset(prefix), 4, 1, vocab_size=50)
        assert str(caught.value) == message
        Path(f"{prefix}.json").unlink(missing_ok=True)
