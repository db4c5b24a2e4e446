"""The encoder-decoder as one module (Vaswani et al. 2017; T5, arXiv:1910.10683).

Legend: B micro-batch, T target tokens, S source tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.attention.cache import KVCache
from roots.models.decoder import Parts, Stack
from roots.models.embedding import PairEmbedding


class Source(NamedTuple):
    """What a decoder reads: the encoder's output, and how many tokens of every row count."""

    memory_BSH: Tensor
    lengths_B: Tensor


class SourceEncoder(nn.Module):
    """The blocks of the encoder, and the norm behind them (None: norms stand behind branches)."""

    def __init__(self, layers: Sequence[nn.Module], final_norm: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm

    def forward(self, stream: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The stream with the source's vectors turned into the memory."""
        for layer in self.layers:
            stream = layer(stream)
        return stream if self.final_norm is None else self.final_norm(stream)


class EncoderDecoder(Stack):
    """A bidirectional encoder of the source, and a causal decoder that reads it."""

    embedding: PairEmbedding

    def __init__(
        self, model: ModelConfig, embedding: PairEmbedding, encoder: SourceEncoder, parts: Parts
    ) -> None:
        super().__init__(model, embedding, parts)
        self.encoder = encoder

    def forward(
        self,
        tokens_BT: Tensor,
        source_BS: Tensor,
        document_starts_BT: Tensor,
        source_lengths_B: Tensor,
        dropout_keys_B: Tensor,
        *targets: Tensor,
        logits_at_B: Tensor | None = None,
    ) -> Tensor:
        """The loss (scalar, see roots.parallel.loss) with targets, else logits_BTV.

        targets:          labels_BT and loss_weights_BT, or nothing
        source_lengths_B: tokens of every source that count; nobody sees the padding behind them
        logits_at_B:      only the logits of one token per row, logits_B1V
        Raises RootsError if a row is longer than learned positions reach.
        """
        self._check_length(tokens_BT.shape[1], self.model.sequence_length)
        self._check_length(source_BS.shape[1], self.model.source_tokens)
        inputs = (tokens_BT, source_BS, document_starts_BT, source_lengths_B, dropout_keys_B)
        stream = self._blocks(self.encoder(self.embedding(inputs)))
        labels_BT, loss_weights_BT = targets or (None, None)
        return self._finish(stream, labels_BT, loss_weights_BT, logits_at_B)

    def encode(self, source_BS: Tensor, source_lengths_B: Tensor) -> Source:
        """Read the source once, for any number of calls of `decode`. Dropout keys are all 0."""
        self._check_length(source_BS.shape[1], self.model.source_tokens)
        keys_B = torch.zeros_like(source_lengths_B)
        memory_BSH = self.embedding.embed_source(source_BS, keys_B)
        # What belongs to the decoder passes through the blocks of the encoder unread.
        unread = keys_B
        tables = [each for table in self.embedding.source.tables() for each in (unread, table)]
        stream = (unread, memory_BSH, *tables, unread, source_lengths_B, keys_B)
        return Source(self.encoder(stream)[1], source_lengths_B)

    def decode(
        self,
        tokens_BT: Tensor,
        source: Source,
        cache: KVCache | None = None,
        *,
        document_starts_BT: Tensor | None = None,
        logits_at_B: Tensor | None = None,
    ) -> Tensor:
        """logits_BTV after the tokens, or logits_B1V of one token per row.

        cache: tokens follow those it holds and are added to it; keys and values of the source are
               computed at the first call. Document starts then mark left padding (None: there is
               none).
        """
        if cache is None:
            self._check_length(tokens_BT.shape[1], self.model.sequence_length)
        starts_BT = document_starts_BT
        if starts_BT is None:
            starts_BT = torch.zeros_like(tokens_BT)
        keys_B = torch.zeros_like(source.lengths_B)
        past = None if cache is None else cache.length
        x_BTH = self.embedding.embed(tokens_BT, starts_BT, keys_B, past)
        tables = self.embedding.tables()
        stream = (x_BTH, source.memory_BSH, *tables, starts_BT, source.lengths_B, keys_B)
        return self._finish(self._blocks(stream, cache), None, None, logits_at_B)
