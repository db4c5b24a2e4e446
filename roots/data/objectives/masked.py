"""Masked language modelling: some tokens of packed text are hidden, and predicted in place.

BERT (Devlin et al., "BERT: pre-training of deep bidirectional Transformers for language
understanding", 2019, section 3.1): of the chosen tokens 80% become the mask token, 10% a random
token and 10% stay as they are. End-of-document tokens are never chosen. Rows are packed and read
whole, over ends of documents (RoBERTa, Liu et al. 2019, "full sentences"). The draws are a pure
function of (seed, step, place in the step).

Legend: B samples of a micro-batch, T sequence length.
"""

from __future__ import annotations

import numpy as np
import torch

from roots.data.batch import Batch, DocumentRules
from roots.data.blend import Blend
from roots.data.indexed import Int64s
from roots.data.sampler import dropout_keys
from roots.seeding import derive_key, random_bits, uniform

_SHARE_MASKED = 0.8
_SHARE_RANDOM = 0.1


def mask_tokens(
    tokens: Int64s, key: int, *, density: float, mask: int, end: int, text_size: int
) -> tuple[Int64s, Int64s]:
    """Return the input, and the positions to predict: round(T * density) of them, at least one.

    Random tokens are drawn from the ids 0 to text_size - 1. Fewer positions where the row has fewer
    that are no end of a document.
    """
    candidates = np.flatnonzero(tokens != end)
    count = min(max(round(len(tokens) * density), 1), len(candidates))
    bits = random_bits(derive_key(key, "chosen"), torch.arange(len(candidates)))
    order = torch.argsort(bits, stable=True).numpy()
    chosen = np.sort(candidates[order[:count]])
    draws = uniform(derive_key(key, "kind"), torch.from_numpy(chosen)).numpy()
    others = uniform(derive_key(key, "other"), torch.from_numpy(chosen)).numpy() * text_size
    replaced = np.where(
        draws < _SHARE_MASKED,
        mask,
        np.where(draws < _SHARE_MASKED + _SHARE_RANDOM, others.astype(np.int64), tokens[chosen]),
    )
    result = tokens.copy()
    result[chosen] = replaced
    return result, chosen


class MaskedBatches:
    """Micro-batches of packed text with hidden tokens; every row is full."""

    def __init__(
        self,
        blend: Blend,
        *,
        global_batch_size: int,
        rules: DocumentRules,
        density: float,
        mask: int,
        end: int,
        text_size: int,
        seed: int,
    ) -> None:
        """Keep what stays the same; the samples of `blend` have T + 1 tokens."""
        self._blend = blend
        self._global_batch_size = global_batch_size
        self._rules = rules
        self._density = density
        self._mask = mask
        self._end = end
        self._text_size = text_size
        self._seed = seed

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        """Read and mask the samples at `places` of step `step`."""
        first = step * self._global_batch_size
        samples = [self._blend[first + place] for place in places]
        # The last token of a sample is the first of the next one.
        labels = np.stack([sample.tokens[:-1] for sample in samples])
        starts = np.stack([sample.document_starts[:-1] for sample in samples])
        inputs, weights = labels.copy(), np.zeros(labels.shape, dtype=np.float32)
        for row, place in enumerate(places):
            inputs[row], chosen = mask_tokens(
                labels[row],
                derive_key(self._seed, "mask", step, place),
                density=self._density,
                mask=self._mask,
                end=self._end,
                text_size=self._text_size,
            )
            weights[row, chosen] = 1.0 / max(len(chosen), 1)
        told_apart = self._rules.separate_documents or self._rules.reset_positions
        rows, length = labels.shape
        return Batch(
            tokens_BT=torch.from_numpy(inputs),
            labels_BT=torch.from_numpy(labels),
            loss_weights_BT=torch.from_numpy(weights),
            document_starts_BT=torch.from_numpy(starts * told_apart),
            dropout_keys_B=torch.tensor(dropout_keys(self._seed, step, places), dtype=torch.int64),
            source_BS=torch.empty((rows, 0), dtype=torch.int64),
            source_lengths_B=torch.full((rows,), length, dtype=torch.int64),
        )
