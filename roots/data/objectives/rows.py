"""Rows of different lengths as a batch: padding, begin token and weights.

Legend: B samples of a micro-batch, T sequence length, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from roots.data.batch import Batch
from roots.data.indexed import Tokens


def sequence_batch(
    sources: Sequence[Tokens],
    targets: Sequence[Tokens],
    dropout_keys: Sequence[int],
    *,
    begin: int,
    shape: tuple[int, int],
) -> Batch:
    """Build the batch of an encoder-decoder: sources padded to S, targets to T of `shape` (S, T).

    The decoder reads `begin` and the target but its last token, and predicts the target; each
    predicted token weighs 1 / (tokens of its target). Padding is token 0 with weight 0. No text
    may be longer than its side of `shape`, and no target empty.
    """
    source_size, target_size = shape
    labels = _padded(targets, target_size)
    tokens = np.empty_like(labels)
    tokens[:, 0] = begin
    tokens[:, 1:] = labels[:, :-1]
    lengths = np.array([len(target) for target in targets])[:, None]
    inside = np.arange(target_size)[None, :] < lengths
    tokens[~inside] = 0
    return Batch(
        tokens_BT=torch.from_numpy(tokens),
        labels_BT=torch.from_numpy(labels),
        loss_weights_BT=torch.from_numpy((inside / lengths).astype(np.float32)),
        document_starts_BT=torch.zeros(labels.shape, dtype=torch.int64),
        dropout_keys_B=torch.tensor(dropout_keys, dtype=torch.int64),
        source_BS=torch.from_numpy(_padded(sources, source_size)),
        source_lengths_B=torch.tensor([len(source) for source in sources], dtype=torch.int64),
    )


def _padded(rows: Sequence[Tokens], size: int) -> np.ndarray:
    result = np.zeros((len(rows), size), dtype=np.int64)
    for number, row in enumerate(rows):
        result[number, : len(row)] = row
    return result
