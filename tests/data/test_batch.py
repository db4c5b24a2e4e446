"""Batches made from samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roots.data.batch import DocumentRules, make_batch
from roots.data.gpt import Sample

# Documents: 10 11 0 | 20 0 | 30 31 32
SAMPLE = Sample(
    np.array([10, 11, 0, 20, 0, 30, 31, 32]), np.array([0, 0, 0, 3, 3, 5, 5, 5], dtype=np.int64)
)


def test_labels_are_the_next_tokens():
    batch = make_batch([SAMPLE, SAMPLE], [5, -6], DocumentRules())
    assert batch.tokens_BT.tolist() == [[10, 11, 0, 20, 0, 30, 31]] * 2
    assert batch.labels_BT.tolist() == [[11, 0, 20, 0, 30, 31, 32]] * 2
    assert batch.document_starts_BT.tolist() == [[0, 0, 0, 3, 3, 5, 5]] * 2
    assert batch.dropout_keys_B.tolist() == [5, -6]
    assert batch.source_BS.shape == (2, 0)
    assert batch.source_lengths_B.tolist() == [0, 0]
    types = [tensor.dtype for tensor in batch]
    assert types == [torch.int64, torch.int64, torch.float32, *[torch.int64] * 4]


def test_weights_of_a_sample_add_up_to_one():
    batch = make_batch([SAMPLE], [0], DocumentRules())
    assert batch.loss_weights_BT.tolist() == [[pytest.approx(1 / 7)] * 7]


def test_first_token_of_a_document_is_not_predicted_when_masked():
    batch = make_batch([SAMPLE], [0], DocumentRules(mask_document_end=True))
    fifth = pytest.approx(1 / 5)
    assert batch.loss_weights_BT.tolist() == [[fifth, fifth, 0.0, fifth, 0.0, fifth, fifth]]


def test_sample_in_which_nothing_is_predicted_weighs_nothing():
    sample = Sample(np.array([0, 0, 0]), np.array([0, 1, 2]))
    batch = make_batch([sample], [0], DocumentRules(mask_document_end=True))
    assert batch.loss_weights_BT.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "separate, reset, told_apart",
    [(True, False, True), (False, True, True), (True, True, True), (False, False, False)],
)
def test_documents_are_told_apart_where_anything_asks_for_it(separate, reset, told_apart):
    rules = DocumentRules(separate_documents=separate, reset_positions=reset)
    batch = make_batch([SAMPLE], [0], rules)
    expected = [0, 0, 0, 3, 3, 5, 5] if told_apart else [0] * 7
    assert batch.document_starts_BT.tolist() == [expected]
