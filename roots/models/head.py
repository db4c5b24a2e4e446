"""The token matrix in its two uses, and what ends a model: the head and its transform.

Legend: B micro-batch, T tokens, H hidden, V vocabulary, v this rank's rows of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.norm import Norm
from roots.models.options import BuildOptions
from roots.ops import bias_gelu
from roots.parallel.collectives import gather_from
from roots.parallel.embedding import VocabParallelEmbedding
from roots.parallel.linear import ColumnParallelLinear
from roots.parallel.loss import linear_cross_entropy, vocab_parallel_logits
from roots.parallel.mesh import Axis
from roots.parallel.shard import attach, even


class TokenTable(VocabParallelEmbedding):
    """A matrix with one row per token, its rows spread over the tensor axis.

    Both uses go through forward, told apart by the input, so that a tied decoder reaches the weight
    only inside the module that owns it: that is where ZeRO-3 gathers it. The head's bias is made
    where the matrix is used as a head (`is_head`).

    Communication, as an embedding: forward all-reduce of x. As a head: forward all-reduces of the
    softmax statistics (loss) or an all-gather (logits); backward all-reduce of dx. With sequence
    parallelism: as an embedding, forward reduce-scatter and backward all-gather of x; as a head, an
    all-gather of x before the rest, and a reduce-scatter instead of the all-reduce of dx.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        name: str,
        axis: Axis,
        options: BuildOptions,
        tied_to: str | None = None,
        is_head: bool = True,
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
        self.bias: nn.Parameter | None = None
        if is_head and model.head_bias:
            shard = even("head.bias", (model.padded_vocab_size,), 0, axis)
            self.bias = nn.Parameter(
                torch.empty(shard.local_shape, device=options.device, dtype=options.dtype)
            )
            attach(self.bias, shard, axis)
        self.scale = model.head_scale
        self.label_smoothing = options.label_smoothing
        self.z_loss = options.z_loss
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

        What enters the head is multiplied by model.head_scale. Label smoothing and z-loss are for
        training: an evaluation reports the plain cross-entropy.
        """
        if not x.is_floating_point():
            return super().forward(x)
        if self.scale != 1.0:
            x = x * self.scale
        if labels_BT is None or loss_weights_BT is None:
            if self.sequence_dim is not None:
                x = gather_from(x, self.axis, self.sequence_dim)
            return vocab_parallel_logits(x, self.weight, self.axis, self.vocab_size, self.bias)
        return linear_cross_entropy(
            x,
            self.weight,
            labels_BT,
            loss_weights_BT,
            axis=self.axis,
            vocab_size=self.vocab_size,
            bias_v=self.bias,
            label_smoothing=self.label_smoothing if self.training else 0.0,
            z_loss=self.z_loss if self.training else 0.0,
            sequence_dim=self.sequence_dim,
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


class HeadTransform(nn.Module):
    """norm(gelu(x W^T + b)) before the head, as a layer of the stream (BERT, arXiv:1810.04805).

    Communication: forward all-gather of y; backward all-reduce of dx.
    """

    def __init__(self, model: ModelConfig, *, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        self.dense = ColumnParallelLinear(
            model.hidden_size,
            model.hidden_size,
            name="head_transform.dense",
            axis=axis,
            bias=model.bias,
            gather_output=True,
            device=options.device,
            dtype=options.dtype,
        )
        self.norm = Norm(model, name="head_transform.norm", axis=axis, options=options)
        self.approximate = "tanh" if model.activation.endswith("_tanh") else "none"
        self.implementation = options.ops.bias_gelu

    def forward(self, stream: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The stream with x_BTH transformed."""
        x_BTH, *others = stream
        y_BTH = self.dense(x_BTH)
        a_BTH = bias_gelu(y_BTH, None, self.approximate, implementation=self.implementation)
        return (self.norm(a_BTH), *others)
