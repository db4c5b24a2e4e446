"""Continuing prompts with a decoder by beam search, in one batch.

Legend: B rows, N beams of a row, R = B N texts, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roots.generation.beam import BeamOptions, Hypothesis, beam_search, row_limits
from roots.generation.limits import Ends, check_lengths, room_after
from roots.models.attention.cache import KVCache
from roots.models.decoder import Decoder


def continue_by_beams(
    decoder: Decoder, prompts: Sequence[Sequence[int]], options: BeamOptions, *, end: Ends
) -> list[Hypothesis]:
    """Search the best continuation of every prompt (at least one token) until `end`.

    What is added to a prompt ends with learned positions, whatever room the others have. Dropout
    is off meanwhile. Raises RootsError for a prompt longer than they reach.
    """
    limit = check_lengths(prompts, decoder.model)
    if not prompts:
        return []
    rooms = [room_after(len(prompt), limit) for prompt in prompts]
    device = decoder.embedding.tokens.weight.device
    was_training = decoder.training
    decoder.eval()
    try:
        with torch.no_grad():
            texts = _Texts(decoder, prompts, options, rooms)
            return beam_search(texts, options, rooms=rooms, end=end, device=device)
    finally:
        decoder.train(was_training)


class _Texts:
    """The texts of all beams under way; prompts are padded on the left, which starts hide."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        options: BeamOptions,
        rooms: Sequence[int | None],
    ) -> None:
        beams = options.num_beams
        width = max(len(prompt) for prompt in prompts)
        weight = decoder.embedding.tokens.weight
        limits = row_limits(options, rooms)
        padding = [width - len(prompt) for prompt in prompts for _ in range(beams)]
        rows = [[*[0] * (width - len(prompt)), *prompt] for prompt in prompts for _ in range(beams)]
        self.decoder = decoder
        self.prompts_RT = torch.tensor(rows, device=weight.device)
        self.padding_R = torch.tensor(padding, device=weight.device)
        self.limits_R = torch.tensor(limits, device=weight.device).repeat_interleave(beams)
        self.cache = KVCache.allocate(
            decoder.model,
            decoder.embedding.tokens.axis,
            rows=len(rows),
            capacity=width + max(limits),
            dtype=weight.dtype,
            device=weight.device,
        )

    def next_log_probabilities(self, tokens_R: Tensor | None) -> Tensor:
        """Append one token to every text (at first: its prompt) -> log p of the next, [R, V]."""
        if tokens_R is None:
            tokens_RT = self.prompts_RT
            places_T = torch.arange(tokens_RT.shape[1], device=tokens_RT.device)
            # Padding before the start looks at padding; an empty set of keys would give nan.
            starts_RT = self.padding_R[:, None] * (places_T >= self.padding_R[:, None])
        else:
            tokens_RT, place = tokens_R[:, None], self.cache.length
            written = place - self.prompts_RT.shape[1] + 1
            # A row at its limit goes on as a document of its own, so its positions stay valid.
            over_R = written >= self.limits_R
            starts_RT = self.padding_R.masked_fill(over_R, place)[:, None]
        last_R = torch.full_like(self.padding_R, tokens_RT.shape[1] - 1)
        logits_R1V = self.decoder(
            tokens_RT, starts_RT, torch.zeros_like(last_R), cache=self.cache, logits_at_B=last_R
        )
        return logits_R1V[:, 0].float().log_softmax(-1)

    def reorder(self, rows_R: Tensor) -> None:
        """Continue text r from text rows_R[r], which has the same prompt."""
        self.cache.select_rows(rows_R)
