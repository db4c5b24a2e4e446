"""The token matrix in its two uses, and the head that ends the decoder.

Legend: B micro-batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.options import BuildOptions
from roots.parallel.collectives import gather_from
from roots.parallel.embedding import VocabParallelEmbedding
from roots.parallel.loss import linear_cross_entropy, vocab_parallel_logits
from roots.parallel.mesh import Axis


class TokenTable(VocabParallelEmbedding):
    """A matrix with one row per token, its rows spread over the tensor axis.

    Both uses go through forward, told apart by the input, so that a tied decoder reaches the weight
    only inside the module that owns it: that is where ZeRO-3 gathers it.

    Communication, as an embedding: forward all-reduce of x. As a head: forward all-reduces of the
    softmax statistics (loss) or an all-gather (logits); backward all-reduce of dx. With sequence
    parallelism: as an embedding, forward reduce-scatter and backward all-gather of x; as a head,
    forward an all-gather of x before the rest, whose gradient is whole on every rank already.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        name: str,
        axis: Axis,
        options: BuildOptions,
        tied_to: str | None = None,
    ) -> None:
        super().__init__(
            model.padded_vocab_size,
            model.hidden_size,
            name=name,
            axis=axis,
            tied_to=tied_to,
            sequence_dim=options.sequence_dim,
            device=options.device,
            dtype=options.dtype,
        )
        self.vocab_size = model.vocab_size
        self.implementation = options.ops.cross_entropy

    def forward(
        self,
        x: Tensor,
        labels_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
    ) -> Tensor:
        """Look up, or project to the vocabulary.

        tokens_BT (int64)                     -> x_BTH
        x_BTH (floating)                      -> logits_BTV, without the padding of the vocabulary
        x_BTH, labels_BT, loss_weights_BT     -> loss, the weighted sum of token losses over B
        """
        if not x.is_floating_point():
            return super().forward(x)
        if self.sequence_dim is not None:
            x = gather_from(x, self.axis, self.sequence_dim)
        if labels_BT is None or loss_weights_BT is None:
            return vocab_parallel_logits(x, self.weight, self.axis, self.vocab_size)
        return linear_cross_entropy(
            x,
            self.weight,
            labels_BT,
            loss_weights_BT,
            axis=self.axis,
            vocab_size=self.vocab_size,
            implementation=self.implementation,
        )


class TiedHead(nn.Module):
    """The head of a tied model on another pipeline stage than the embedding: its own copy.

    The matrix has the place and name it has in Embedding (`tokens.weight`), so that the pipeline
    sums the gradients of the two.
    """

    def __init__(self, model: ModelConfig, *, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        self.tokens = TokenTable(
            model, name="head", axis=axis, options=options, tied_to="embedding.tokens.weight"
        )

    def forward(
        self,
        x_BTH: Tensor,
        labels_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
    ) -> Tensor:
        """x_BTH -> loss with labels and weights, else logits_BTV; see TokenTable."""
        y: Tensor = self.tokens(x_BTH, labels_BT, loss_weights_BT)
        return y
