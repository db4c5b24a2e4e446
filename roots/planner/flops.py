"""Model FLOPs of training, and the one definition of MFU.

Counted as by Narayanan et al. (SC 2021, "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM", section 5.1 and appendix) and Chowdhery et al. (PaLM, appendix B):
 - only matrix products count, a multiply-add is 2 FLOPs, the backward pass is twice the forward;
 - the vocabulary head counts, with the true (not the padded) vocabulary; a table look-up does not;
 - attention scores count over the full square, without the halving that causality would allow;
 - recomputed activations do not count: MFU asks what the model needs, not what the machine did.
For a GPT with F = 4H and as many key/value as query heads this is Narayanan's equation without its
recomputation term: 72 L H^2 (1 + T / 6H + V / 12LH) FLOPs a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.model import ModelConfig
from roots.planner.parameters import attention_matrix_parameters, mlp_matrix_parameters

MFU_FORMULA = (
    "MFU = tokens_per_second * flops_per_token / peak_flops_per_second, where flops_per_token = "
    "6 * (matrix weights of all blocks + hidden_size * vocab_size) + "
    "12 * num_layers * num_heads * head_size * sequence_length"
)

BACKWARD_TO_FORWARD = 2


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of the forward pass for one token, by part."""

    projections: int
    attention: int
    mlp: int
    head: int

    @property
    def forward(self) -> int:
        """FLOPs of one token forward."""
        return self.projections + self.attention + self.mlp + self.head

    @property
    def training(self) -> int:
        """FLOPs of one token forward and backward."""
        return (1 + BACKWARD_TO_FORWARD) * self.forward


def token_flops(model: ModelConfig, sequence_length: int | None = None) -> TokenFlops:
    """Count the FLOPs of one token in a sequence of `sequence_length` (default: the model's)."""
    length = model.sequence_length if sequence_length is None else sequence_length
    # Per query and head: D multiply-adds with each of T keys, and as many with the T values.
    scores_and_values = 2 * 2 * length * model.num_heads * model.head_size
    return TokenFlops(
        projections=2 * model.num_layers * attention_matrix_parameters(model),
        attention=model.num_layers * scores_and_values,
        mlp=2 * model.num_layers * mlp_matrix_parameters(model),
        head=2 * model.hidden_size * model.vocab_size,
    )


def training_flops_per_token(model: ModelConfig) -> int:
    """FLOPs of one token, forward and backward."""
    return token_flops(model).training


def mfu(tokens_per_second: float, flops_per_token: int, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation, a share of 1: see MFU_FORMULA.

    `peak_flops_per_second` is that of all devices together which process the tokens.
    """
    return tokens_per_second * flops_per_token / peak_flops_per_second
