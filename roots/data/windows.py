"""A whole dataset as consecutive windows, each token predicted once: for perplexity.

Legend: B windows of a batch, T window length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from roots.data.batch import Batch, DocumentRules, assemble, prediction_mask
from roots.data.blend import check_vocabulary, vocabulary_error
from roots.data.indexed import IndexedDataset


@dataclass(frozen=True)
class WindowBatch:
    """A batch whose loss weights are the plain mask, 1 or 0, and how many tokens it predicts.

    With `Batch`'s definition of the loss, B * loss is the sum of the token losses, so perplexity
    is exp(sum of B * loss / sum of predicted_tokens) over all batches of all ranks.
    """

    batch: Batch
    predicted_tokens: int


def num_windows(indexed: IndexedDataset, sequence_length: int) -> int:
    """Return how many windows it takes to predict every token of a dataset but the first."""
    return max(1, -(-(indexed.num_tokens - 1) // sequence_length))


def iterate_windows(
    indexed: IndexedDataset,
    *,
    sequence_length: int,
    batch_size: int,
    vocab_size: int,
    rules: DocumentRules,
    data_rank: int = 0,
    data_size: int = 1,
) -> Iterator[WindowBatch]:
    """Yield the windows of a dataset in order, the batches dealt to the ranks in turn.

    Window w holds tokens w * T to w * T + T; the last is padded with token 0 and weight 0. Every
    rank gets the same number of batches of the same size; missing windows are all padding.
    Raises RootsError for a token id beyond the vocabulary.
    """
    indexed.check_index()
    check_vocabulary(indexed, vocab_size)
    total = num_windows(indexed, sequence_length)
    rounds = -(-total // (batch_size * data_size))
    bounds = indexed.document_starts(range(indexed.num_documents))
    for number in range(rounds):
        first = (number * data_size + data_rank) * batch_size
        tokens = np.zeros((batch_size, sequence_length + 1), dtype=np.int64)
        starts = np.zeros_like(tokens)
        mask = np.zeros((batch_size, sequence_length))
        for row in range(batch_size):
            begin = (first + row) * sequence_length
            end = min(begin + sequence_length + 1, indexed.num_tokens)
            if end - begin < 2:
                continue
            count = end - begin
            tokens[row, :count] = indexed.tokens[begin:end]
            starts[row, :count] = _starts(bounds, begin, end)
            mask[row, : count - 1] = prediction_mask(starts[row : row + 1, :count], rules)[0]
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab_size:
            raise vocabulary_error(indexed.prefix, low if low < 0 else high, vocab_size)
        batch = assemble(tokens, starts, mask, [0] * batch_size, rules)
        yield WindowBatch(batch, int(mask.sum()))


def _starts(bounds: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Return, for tokens begin to end, where in the window the document of each starts."""
    positions = np.arange(begin, end)
    # Of equal bounds (empty documents) the last one is the document that holds the token.
    starts = bounds[np.searchsorted(bounds, positions, side="right") - 1]
    return np.asarray(np.maximum(starts - begin, 0))
