"""The decoder as one module: what a single pipeline stage trains, evaluates and generates with.

Legend: B micro-batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem
from roots.models.attention.cache import KVCache
from roots.models.block import Stream
from roots.models.embedding import Embedding


@dataclass(frozen=True)
class Parts:
    """The layers behind the embedding, built."""

    layers: Sequence[nn.Module]
    final_norm: nn.Module | None
    head_transform: nn.Module | None
    head: nn.Module | None


class Stack(nn.Module):
    """A model on one pipeline stage: embedding, blocks, and what comes behind them.

    Every parameter is used inside the forward of the module that owns it, as ZeRO-3 demands.
    Attributes, and hence the names of parameters, are those of the list of layers; `final_norm`,
    `head_transform` and `head` are None where the config has none, the last where the embedding's
    matrix is the head.
    """

    def __init__(self, model: ModelConfig, embedding: Embedding, parts: Parts) -> None:
        super().__init__()
        self.model = model
        self.embedding = embedding
        self.layers = nn.ModuleList(parts.layers)
        self.final_norm = parts.final_norm
        self.head_transform = parts.head_transform
        self.head = parts.head

    def _blocks(self, stream: Stream, cache: KVCache | None = None) -> Stream:
        """The stream behind the last block."""
        for index, layer in enumerate(self.layers):
            stream = layer(stream) if cache is None else layer(stream, cache.layers[index])
        return stream

    def predict(self, x_BTH: Tensor) -> Tensor:
        """logits_BTV of what stands in the stream behind the last block, or behind another one."""
        return self._finish((x_BTH,), None, None, None)

    def _finish(
        self,
        stream: Stream,
        labels_BT: Tensor | None,
        loss_weights_BT: Tensor | None,
        logits_at_B: Tensor | None,
    ) -> Tensor:
        """The loss (scalar, see roots.parallel.loss) with labels, else logits."""
        if self.final_norm is not None:
            stream = self.final_norm(stream)
        x_BTH = stream[0]
        if logits_at_B is not None:
            x_BTH = x_BTH[torch.arange(len(x_BTH), device=x_BTH.device), logits_at_B].unsqueeze(1)
        if self.head_transform is not None:
            (x_BTH,) = self.head_transform((x_BTH,))
        head = self.embedding.tokens if self.head is None else self.head
        result: Tensor = head(x_BTH, labels_BT, loss_weights_BT)
        return result

    def _check_length(self, length: int, limit: int) -> None:
        if self.model.position == "learned" and length > limit:
            rule = f"is more than the {limit} positions that the model has learned"
            raise RootsError(problem("tokens in a row", length, rule, "shorten the text"))


class Decoder(Stack):
    """A causal model of one stack."""

    def forward(
        self,
        tokens_BT: Tensor,
        document_starts_BT: Tensor,
        dropout_keys_B: Tensor,
        labels_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        logits_at_B: Tensor | None = None,
    ) -> Tensor:
        """The loss (scalar, see roots.parallel.loss) with labels, else logits_BTV.

        cache:       tokens follow those it holds and are added to it; document starts, in positions
                     of the whole row, then mark left padding
        logits_at_B: only the logits of one token per row, logits_B1V
        Of samples that several context ranks share, tokens, labels and weights are those of this
        rank (roots.parallel.placement), and so is the loss; the document starts are all.
        Raises RootsError if the row becomes longer than learned positions reach.
        """
        past = None if cache is None else cache.past
        if cache is None:
            self._check_length(document_starts_BT.shape[1], self.model.sequence_length)
        stream = self.embedding((tokens_BT, document_starts_BT, dropout_keys_B), past)
        stream = self._blocks(stream, cache)
        return self._finish(stream, labels_BT, loss_weights_BT, logits_at_B)
