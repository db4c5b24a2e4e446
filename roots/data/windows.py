"""A whole dataset as consecutive windows, each token predicted once: for perplexity.

Legend: B rows of a batch, T window length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from roots.data.batch import Batch, DocumentRules, assemble, prediction_mask
from roots.data.blend import check_vocabulary, vocabulary_error
from roots.data.indexed import IndexedDataset

# Of rows cut at documents: a processor is busy with so many positions, and more only take memory.
MOST_POSITIONS = 4096
# Rows of like length are looked for among those of so many batches.
BATCHES_AHEAD = 64
# Padding a batch of them may have, as a share of its tokens.
MOST_PADDING = 1 / 8


@dataclass(frozen=True)
class WindowBatch:
    """A batch whose loss weights are the plain mask, 1 or 0, and how many tokens it predicts.

    With `Batch`'s definition of the loss, B * loss is the sum of the token losses, so perplexity
    is exp(sum of B * loss / sum of predicted_tokens) over all batches.
    """

    batch: Batch
    predicted_tokens: int


@dataclass(frozen=True)
class _Row:
    """n inputs and what follows them: tokens and document starts [n + 1], mask [n]."""

    tokens: np.ndarray
    starts: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.mask)


def iterate_windows(
    indexed: IndexedDataset,
    *,
    sequence_length: int,
    batch_size: int,
    vocab_size: int,
    rules: DocumentRules,
    documents_alone: bool = False,
) -> Iterator[WindowBatch]:
    """Yield the windows of a dataset, `batch_size` at a time, no longer than what they hold.

    Window w holds tokens w * T to w * T + T. A batch is as long as its longest row; the others are
    padded with token 0 and weight 0.
    documents_alone: the caller's promise that a token's loss depends on nothing but the tokens of
                     its own document before it in its window. Rows are then the parts of documents
                     in the windows, those of like length together, in no certain order; a batch has
                     the positions of `batch_size` windows, or 4,096, at most.
    Raises RootsError for a token id beyond the vocabulary.
    """
    indexed.check_index()
    check_vocabulary(indexed, vocab_size)
    windows = _windows(indexed, sequence_length, vocab_size, rules)
    groups: Iterable[tuple[_Row, ...]] = iter(lambda: tuple(islice(windows, batch_size)), ())
    if documents_alone:
        rows = (row for window in windows for row in _documents(window))
        groups = _of_like_length(rows, min(batch_size * sequence_length, MOST_POSITIONS))
    for group in groups:
        yield _stack(group, rules)


def _windows(
    indexed: IndexedDataset, sequence_length: int, vocab_size: int, rules: DocumentRules
) -> Iterator[_Row]:
    bounds = indexed.document_starts(range(indexed.num_documents))
    for begin in range(0, indexed.num_tokens - 1, sequence_length):
        end = min(begin + sequence_length + 1, indexed.num_tokens)
        tokens = indexed.tokens[begin:end].astype(np.int64)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab_size:
            raise vocabulary_error(indexed.prefix, low if low < 0 else high, vocab_size)
        starts = _starts(bounds, begin, end)
        yield _Row(tokens, starts, prediction_mask(starts[None], rules)[0])


def _documents(window: _Row) -> Iterator[_Row]:
    """The parts of documents in a window, without inputs from which nothing is predicted."""
    edges = np.flatnonzero(np.diff(window.starts[:-1])) + 1
    for begin, end in pairwise([0, *edges.tolist(), len(window)]):
        # Of a document only the end can have nothing to predict.
        count = int(window.mask[begin:end].sum())
        if count > 0:
            tokens = window.tokens[begin : begin + count + 1]
            yield _Row(tokens, np.zeros_like(tokens), np.ones(count))


def _of_like_length(rows: Iterable[_Row], most_positions: int) -> Iterator[tuple[_Row, ...]]:
    """Group the rows with little padding, at most so many positions together or a single row."""
    ahead: list[_Row] = []
    tokens = 0
    for row in rows:
        ahead.append(row)
        tokens += len(row)
        if tokens >= BATCHES_AHEAD * most_positions:
            yield from _grouped(ahead, most_positions)
            ahead, tokens = [], 0
    yield from _grouped(ahead, most_positions)


def _grouped(rows: list[_Row], most_positions: int) -> Iterator[tuple[_Row, ...]]:
    group: list[_Row] = []
    tokens = 0
    for row in sorted(rows, key=len, reverse=True):
        positions = len(group[0]) * (len(group) + 1) if group else 0
        allowed = min(most_positions, (1 + MOST_PADDING) * (tokens + len(row)))
        if positions > allowed:
            yield tuple(group)
            group, tokens = [], 0
        group.append(row)
        tokens += len(row)
    if group:
        yield tuple(group)


def _stack(rows: tuple[_Row, ...], rules: DocumentRules) -> WindowBatch:
    """One batch of the rows, as long as the longest."""
    length = max(map(len, rows))
    tokens = np.zeros((len(rows), length + 1), dtype=np.int64)
    starts = np.zeros_like(tokens)
    mask = np.zeros((len(rows), length))
    for index, row in enumerate(rows):
        tokens[index, : len(row) + 1] = row.tokens
        starts[index, : len(row) + 1] = row.starts
        mask[index, : len(row)] = row.mask
    batch = assemble(tokens, starts, mask, [0] * len(rows), rules)
    return WindowBatch(batch, int(mask.sum()))


def _starts(bounds: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Return, for tokens begin to end, where in the window the document of each starts."""
    positions = np.arange(begin, end)
    # Of equal bounds (empty documents) the last one is the document that holds the token.
    starts = bounds[np.searchsorted(bounds, positions, side="right") - 1]
    return np.asarray(np.maximum(starts - begin, 0))
