"""A whole dataset, each token predicted once."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.data.batch import DocumentRules
from roots.data.indexed import IndexedDataset
from roots.data.windows import iterate_windows
from roots.errors import RootsError


def windows(indexed, size, batch_size, vocab_size=100, rules=None, alone=False):
    return list(
        iterate_windows(
            indexed,
            sequence_length=size,
            batch_size=batch_size,
            vocab_size=vocab_size,
            rules=rules or DocumentRules(),
            documents_alone=alone,
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


def computed(items):
    """Positions that a model works on."""
    return sum(item.batch.tokens_BT.numel() for item in items)


@pytest.mark.parametrize("lengths", [[23], [24], [25], [5, 0, 7, 13], [2], [1]])
@pytest.mark.parametrize("size, batch_size", [(8, 2), (6, 1), (40, 3), (1, 4)])
@pytest.mark.parametrize("alone", [False, True])
def test_every_token_is_predicted_once(numbered, lengths, size, batch_size, alone):
    items = windows(numbered(lengths), size, batch_size, alone=alone)
    assert sorted(predicted(items)) == [(t, t + 1) for t in range(sum(lengths) - 1)]
    assert sum(item.predicted_tokens for item in items) == sum(lengths) - 1
    if alone:
        assert computed(items) <= 1.125 * (sum(lengths) - 1)
    else:
        assert all(len(item.batch.tokens_BT) <= batch_size for item in items)


def test_weights_are_the_plain_mask(numbered):
    (item,) = windows(numbered([4, 3]), 10, 2)
    assert item.batch.loss_weights_BT.tolist() == [[1.0] * 6]
    assert item.batch.document_starts_BT.tolist() == [[0, 0, 0, 0, 4, 4]]
    first, second = windows(numbered([4, 3, 9]), 10, 1)
    assert first.batch.tokens_BT.shape == (1, 10)
    assert second.batch.tokens_BT.tolist() == [[10, 11, 12, 13, 14]]
    (both,) = windows(numbered([4, 3, 9]), 10, 3)
    assert both.batch.loss_weights_BT.tolist() == [[1.0] * 10, [1.0] * 5 + [0.0] * 5]


def test_document_boundaries_are_relative_to_the_window(numbered):
    items = windows(numbered([5, 0, 6, 2]), 4, 1)
    starts = [item.batch.document_starts_BT.tolist()[0] for item in items]
    assert starts == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 3]]
    alone = windows(numbered([5, 0, 6, 2]), 4, 2, alone=True)
    rows = [row for item in alone for row in item.batch.tokens_BT.tolist()]
    assert sorted(rows) == [[0, 1, 2, 3], [4], [5, 6, 7], [8, 9, 10], [11]]
    assert not any(item.batch.document_starts_BT.any() for item in alone)


@pytest.mark.parametrize("alone", [False, True])
def test_masked_document_ends_are_not_counted(numbered, alone):
    rules = DocumentRules(mask_document_end=True)
    items = windows(numbered([4, 3, 2, 1]), 4, 2, rules=rules, alone=alone)
    assert sorted(predicted(items)) == [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (7, 8)]
    assert sum(item.predicted_tokens for item in items) == 6


def test_only_positions_that_predict_are_computed(numbered):
    lengths = [1, 700, 3, 150, 2, 2, 96, 4, 31, 90, 8, 5, 1100, 17, 1]
    tokens = sum(lengths) - 1
    for batch_size in (1, 8):
        items = windows(numbered(lengths), 8192, batch_size, vocab_size=tokens + 1)
        assert [item.batch.tokens_BT.shape for item in items] == [(1, tokens)]
        alone = windows(numbered(lengths), 8192, batch_size, vocab_size=tokens + 1, alone=True)
        assert computed(alone) <= 1.125 * tokens
        assert len(alone) < len(lengths)
        assert len(predicted(alone)) == tokens


def test_batches_of_documents_are_bounded(numbered):
    items = windows(numbered([40] * 300), 16384, 8, vocab_size=12_000, alone=True)
    assert [tuple(item.batch.tokens_BT.shape) for item in items] == [(102, 40)] * 2 + [(96, 40)]
    items = windows(numbered([40] * 30), 100, 2, vocab_size=1200, alone=True)
    assert all(item.batch.tokens_BT.numel() <= 200 for item in items)


def test_documents_of_like_length_are_found_among_those_ahead(numbered):
    # 2 positions a batch, so that 128 tokens are read ahead.
    items = windows(numbered([1, 2] * 100), 2, 1, vocab_size=300, alone=True)
    assert sorted(predicted(items)) == [(t, t + 1) for t in range(299)]
    assert all(item.batch.tokens_BT.numel() <= 2 for item in items)
    assert computed(items) == 299


def test_token_beyond_the_vocabulary(write_dataset):
    prefix = write_dataset([[1, 99, 0]])
    message = (
        f"{prefix} token id=99: model.vocab_size is 50, so ids go from 0 to 49; "
        "set model.vocab_size to 100 or more, or use the data of another tokenizer"
    )
    for alone in (False, True, False):
        with pytest.raises(RootsError) as caught:
            windows(IndexedDataset(prefix), 4, 1, vocab_size=50, alone=alone)
        assert str(caught.value) == message
        Path(f"{prefix}.json").unlink(missing_ok=True)
