"""Targets of sources: an encoder-decoder read once and written by beams, in batches.

Legend: B rows, N beams of a row, R = B N texts, S source tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roots.generation.beam import BeamOptions, Hypothesis, beam_search, row_limits
from roots.generation.limits import Ends, position_limit, room_after
from roots.models.attention.cache import KVCache
from roots.models.encoder_decoder import EncoderDecoder, Source


def write_targets(
    model: EncoderDecoder,
    sources: Sequence[Sequence[int]],
    options: BeamOptions,
    *,
    begin: int,
    end: Ends,
    batch_size: int = 32,
) -> list[Hypothesis]:
    """Write the target of every source, which is given with its end-of-document token.

    `begin` is the token that the decoder writes after, `end` what ends a target. Sources of
    like length share a batch; one longer than the model takes is cut, as in training. Targets end
    where learned positions do. Dropout is off meanwhile.
    """
    limit = model.model.source_tokens
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    written: list[Hypothesis | None] = [None] * len(sources)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = [list(sources[number])[:limit] for number in numbers]
            for number, result in zip(numbers, _write(model, rows, options, begin, end)):
                written[number] = result
    finally:
        model.train(was_training)
    return [result for result in written if result is not None]


def _write(
    model: EncoderDecoder, rows: list[list[int]], options: BeamOptions, begin: int, end: Ends
) -> list[Hypothesis]:
    device = model.embedding.tokens.weight.device
    length = max(len(row) for row in rows)
    padded = [row + [0] * (length - len(row)) for row in rows]
    with torch.no_grad():
        source = model.encode(
            torch.tensor(padded, device=device),
            torch.tensor([len(row) for row in rows], device=device),
        )
        # Every text starts with `begin` alone.
        rooms = [room_after(1, position_limit(model.model))] * len(rows)
        texts = _Texts(model, source, options, begin, capacity=max(row_limits(options, rooms)))
        return beam_search(texts, options, rooms=rooms, end=end, device=device)


class _Texts:
    """The texts of all beams under way, each with its row of the cache."""

    def __init__(
        self,
        model: EncoderDecoder,
        source: Source,
        options: BeamOptions,
        begin: int,
        *,
        capacity: int,
    ) -> None:
        beams = options.num_beams
        self.model = model
        self.source = Source(*(part.repeat_interleave(beams, dim=0) for part in source))
        self.begin = begin
        weight = model.embedding.tokens.weight
        self.cache = KVCache.allocate(
            model.model,
            model.embedding.tokens.axis,
            rows=len(self.source.lengths_B),
            capacity=capacity,
            dtype=weight.dtype,
            device=weight.device,
        )

    def next_log_probabilities(self, tokens_R: Tensor | None) -> Tensor:
        """Append one token to every text -> log p of the next one, float32 [R, V]."""
        if tokens_R is None:
            tokens_R = torch.full_like(self.source.lengths_B, self.begin)
        last_R = torch.zeros_like(tokens_R)
        logits_R1V = self.model.decode(
            tokens_R[:, None], self.source, self.cache, logits_at_B=last_R
        )
        return logits_R1V[:, 0].float().log_softmax(-1)

    def reorder(self, rows_R: Tensor) -> None:
        """Continue text r from text rows_R[r], which has the same source."""
        self.cache.select_rows(rows_R, same_source=True)
