"""Model FLOPs of training, and the one definition of MFU.

Counted as by Narayanan et al. (SC 2021, "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM", section 5.1 and appendix) and Chowdhery et al. (PaLM, appendix B):
 - of the experts of a block only those count that a token goes to;
 - only matrix products count, a multiply-add is 2 FLOPs, the backward pass is twice the forward;
 - the vocabulary head counts, with the true (not the padded) vocabulary; a table look-up does not;
 - attention scores count over the full square, without the halving that causality would allow, or
   with a window over as many keys for every query;
 - recomputed activations do not count: MFU asks what the model needs, not what the machine did.
For an encoder-decoder a token is one of the target, and carries its share of the source: what the
encoder and the projections of the memory cost a sample, divided by the target's length. Padding
counts: it is multiplied like any token, so lengths are those that batches are padded to.
For a GPT with F = 4H and as many key/value as query heads this is Narayanan's equation without its
recomputation term: 72 L H^2 (1 + T / 6H + V / 12LH) FLOPs a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.model import ModelConfig
from roots.planner.parameters import (
    attention_matrix_parameters,
    expert_parameters,
    mlp_matrix_parameters,
    num_expert_layers,
    shared_gate_parameters,
)

MFU_FORMULA = (
    "MFU = tokens_per_second * flops_per_token / peak_flops_per_second, where, with the matrix "
    "weights that a token meets and an encoder's work besides, flops_per_token = "
    "6 * (matrix weights of all blocks + hidden_size * vocab_size) + "
    "12 * num_layers * num_heads * head_size * min(sequence_length, window)"
)

BACKWARD_TO_FORWARD = 2


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of the forward pass for one token, by part; `encoder` is its share of the source."""

    projections: int
    attention: int
    mlp: int
    head: int
    encoder: int = 0

    @property
    def forward(self) -> int:
        """FLOPs of one token forward."""
        return self.projections + self.attention + self.mlp + self.head + self.encoder

    @property
    def training(self) -> int:
        """FLOPs of one token forward and backward."""
        return (1 + BACKWARD_TO_FORWARD) * self.forward


def token_flops(
    model: ModelConfig, sequence_length: int | None = None, source_length: int | None = None
) -> TokenFlops:
    """Count the FLOPs of one token in a sequence of `sequence_length` (default: the model's).

    source_length: of an encoder-decoder, tokens of its source (default: the model's)
    """
    length = model.sequence_length if sequence_length is None else sequence_length
    keys = length if model.window is None else min(length, model.window)
    projections = attention_matrix_parameters(model)
    transform = model.hidden_size**2 if model.head_transform else 0
    source, of_memory = model.source_tokens, 0
    if source:
        source = source if source_length is None else source_length
        # Queries and outputs of the cross-attention are projected here, keys and values there.
        of_memory = 2 * model.hidden_size * model.kv_heads * model.head_size
        projections += attention_matrix_parameters(model) - of_memory
    of_source = 2 * (attention_matrix_parameters(model) + mlp_matrix_parameters(model))
    of_source += _scores_and_values(model, source)
    encoder = model.encoder_layers * of_source + 2 * model.num_layers * of_memory
    return TokenFlops(
        projections=2 * model.num_layers * projections,
        attention=model.num_layers * _scores_and_values(model, keys + source),
        mlp=2 * _mlp_weights(model),
        head=2 * (model.hidden_size * model.vocab_size + transform),
        encoder=encoder * source // length,
    )


def _scores_and_values(model: ModelConfig, keys: int) -> int:
    """FLOPs of one query in all heads: D multiply-adds with every key, and with every value."""
    return 2 * 2 * keys * model.num_heads * model.head_size


def _mlp_weights(model: ModelConfig) -> int:
    """Matrix weights that a token meets in all MLPs; of a layer of experts: the router, its top_k
    experts, the shared ones and their gate."""
    layers = num_expert_layers(model)
    dense = (model.num_layers - layers) * mlp_matrix_parameters(model)
    moe = model.moe
    chosen = moe.num_experts * model.hidden_size + moe.top_k * expert_parameters(model)
    shared = mlp_matrix_parameters(model, model.shared_ffn_size) + shared_gate_parameters(model)
    return dense + layers * (chosen + shared)


def training_flops_per_token(
    model: ModelConfig, sequence_length: int | None = None, source_length: int | None = None
) -> int:
    """FLOPs of one token, forward and backward, in rows of these lengths as in `token_flops`."""
    return token_flops(model, sequence_length, source_length).training


def mfu(tokens_per_second: float, flops_per_token: int, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation, a share of 1: see MFU_FORMULA.

    `peak_flops_per_second` is that of all devices together which process the tokens.
    """
    return tokens_per_second * flops_per_token / peak_flops_per_second
