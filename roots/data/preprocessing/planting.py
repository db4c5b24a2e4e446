"""Canaries among the documents of a corpus, wherever chance puts them, in one pass.

Every document of a canary has a place between 0 and 1 of the bytes that are read. A batch of
documents takes those whose places lie within its bytes, spread over it likewise. The places depend
on the seed and the batches on the files, so the dataset is the same for any number of workers.
"""

from __future__ import annotations

import random

import numpy as np

from roots.data.canaries import Canaries
from roots.data.indexed import Int64s, Tokens
from roots.tokenizer.tokenizer import Tokenizer


class Planter:
    """Puts the documents of canaries between others; each is planted once."""

    def __init__(
        self,
        canaries: Canaries | None,
        tokenizer: Tokenizer,
        total_bytes: int,
        dtype: np.dtype[np.generic],
    ) -> None:
        """Encode the canaries, if any, as documents of their own, and draw their places."""
        self._dtype, self._done = dtype, 0
        self._waiting: list[tuple[float, Tokens]] = []
        if canaries is None:
            return
        around = tokenizer.special.documents
        texts = [canaries.filled(each.name, each.digits) for each in canaries.canaries]
        # Not the numbers that the secrets were drawn by.
        draws = random.Random(f"places {canaries.seed}")
        for canary, ids in zip(canaries.canaries, tokenizer.encode_batch(texts), strict=True):
            document = np.array([*around.begin, *ids, around.end], dtype=dtype)
            places = [draws.random() * total_bytes for _ in range(canary.repeats)]
            self._waiting += [(place, document) for place in places]
        self._waiting.sort(key=lambda each: each[0], reverse=True)

    def plant(self, tokens: Tokens, lengths: Int64s, read_bytes: int) -> tuple[Tokens, Int64s]:
        """A batch of documents with the canaries that belong to its bytes, which end there."""
        first, span = self._done, max(1, read_bytes - self._done)
        self._done = read_bytes
        if not self._waiting or self._waiting[-1][0] >= read_bytes:
            return tokens, lengths
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        pieces, sizes, at = [], [], 0
        while self._waiting and self._waiting[-1][0] < read_bytes:
            place, document = self._waiting.pop()
            slot = int((place - first) / span * len(bounds))
            pieces += [tokens[bounds[at] : bounds[slot]], document]
            sizes += [lengths[at:slot], np.array([len(document)], dtype=np.int64)]
            at = slot
        pieces.append(tokens[bounds[at] :])
        sizes.append(lengths[at:])
        return np.concatenate(pieces), np.concatenate(sizes)

    def rest(self) -> tuple[Tokens, Int64s]:
        """The canaries behind the last batch, of a corpus that gave fewer bytes than it has."""
        left = [document for _, document in reversed(self._waiting)]
        self._waiting.clear()
        tokens = np.concatenate(left) if left else np.empty(0, dtype=self._dtype)
        return tokens, np.array([len(document) for document in left], dtype=np.int64)
