"""The batch that a model takes, and how it is made from samples.

Legend: B samples of a micro-batch, T sequence length, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from roots.data.gpt import Sample


class Batch(NamedTuple):
    """One micro-batch.

    The loss of a micro-batch is sum(loss_weights_BT * token_loss_BT) / B. In training the weights
    of a sample add up to 1, so that the loss of a global batch does not depend on how it is cut.
    """

    tokens_BT: Tensor
    """int64, the input."""
    labels_BT: Tensor
    """int64, the token after each of them."""
    loss_weights_BT: Tensor
    """float32, 0 where nothing is to be predicted."""
    document_starts_BT: Tensor
    """int64, the index in the row where the document of this token starts; token t may attend to
    s if and only if starts[t] <= s <= t. All zero when documents are not told apart."""
    dropout_keys_B: Tensor
    """int64, from which every dropout mask of the sample follows."""
    source_BS: Tensor
    """int64, what an encoder-decoder reads before it writes; S = 0 for the other models."""
    source_lengths_B: Tensor
    """int64, tokens of the source that count, with padding behind them. For an encoder, which reads
    tokens_BT, the tokens of the row that count; 0 for a decoder, whose rows are packed."""


@dataclass(frozen=True)
class DocumentRules:
    """What a document boundary inside a sample means; the fields of `data` with these names."""

    separate_documents: bool = True
    reset_positions: bool = False
    mask_document_end: bool = False


def make_batch(
    samples: Sequence[Sample], dropout_keys: Sequence[int], rules: DocumentRules
) -> Batch:
    """Stack samples of T + 1 tokens into a batch of T inputs and T labels.

    Each predicted token weighs 1 / (predicted tokens of its sample); a sample in which nothing is
    predicted has zero weights. With `mask_document_end` the first token of a document is not
    predicted from the end of the one before it.
    """
    tokens = np.stack([sample.tokens for sample in samples])
    starts = np.stack([sample.document_starts for sample in samples])
    mask = prediction_mask(starts, rules)
    weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1.0)
    return assemble(tokens, starts, weights, dropout_keys, rules)


def prediction_mask(starts: np.ndarray, rules: DocumentRules) -> np.ndarray:
    """Return 1.0 where the next token is to be predicted, [B, T], from starts [B, T + 1]."""
    mask = np.ones((starts.shape[0], starts.shape[1] - 1))
    if rules.mask_document_end:
        mask[starts[:, 1:] == np.arange(1, starts.shape[1])] = 0.0
    return mask


def assemble(
    tokens: np.ndarray,
    starts: np.ndarray,
    weights: np.ndarray,
    dropout_keys: Sequence[int],
    rules: DocumentRules,
) -> Batch:
    """Put arrays of [B, T + 1] tokens and starts and [B, T] weights into a batch."""
    told_apart = rules.separate_documents or rules.reset_positions
    return Batch(
        tokens_BT=torch.from_numpy(tokens[:, :-1].copy()),
        labels_BT=torch.from_numpy(tokens[:, 1:].copy()),
        loss_weights_BT=torch.from_numpy(weights.astype(np.float32)),
        document_starts_BT=torch.from_numpy((starts[:, :-1] * told_apart).astype(np.int64)),
        dropout_keys_B=torch.tensor(dropout_keys, dtype=torch.int64),
        source_BS=torch.empty((len(tokens), 0), dtype=torch.int64),
        source_lengths_B=torch.zeros(len(tokens), dtype=torch.int64),
    )
