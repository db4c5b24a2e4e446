"""The encoder as one module: bidirectional, trained to restore masked tokens.

Legend: B micro-batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from roots.models.decoder import Stack


class Encoder(Stack):
    """A bidirectional model of one stack (BERT, arXiv:1810.04805, without next-sentence loss)."""

    def forward(
        self,
        tokens_BT: Tensor,
        lengths_B: Tensor,
        dropout_keys_B: Tensor,
        labels_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
        *,
        logits_at_B: Tensor | None = None,
    ) -> Tensor:
        """The loss (scalar, see roots.parallel.loss) with labels, else logits_BTV.

        lengths_B:   tokens of every row that count; nobody sees the padding behind them
        logits_at_B: only the logits of one token per row, logits_B1V
        Raises RootsError if the row is longer than learned positions reach.
        """
        self._check_length(tokens_BT.shape[1], self.model.sequence_length)
        stream = self._blocks(self.embedding((tokens_BT, lengths_B, dropout_keys_B)))
        return self._finish(stream, labels_BT, loss_weights_BT, logits_at_B)
