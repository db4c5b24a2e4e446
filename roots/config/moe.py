"""The section `model.moe`: which blocks have experts instead of one MLP, and how tokens get there.

Terms are those of Mixtral (Jiang et al. 2024) and Megatron-core. The router always computes in
fp32, and neither it nor the experts that it chooses from have biases, whatever `model.bias` says;
the shared experts are an MLP, which follows it.
"""

from __future__ import annotations

from pydantic import Field

from roots.config.section import Section


class MoEConfig(Section):
    """Every token goes to `top_k` of `num_experts` MLPs (Shazeer et al. 2017)."""

    num_experts: int = Field(0, ge=0, description="experts of a layer; 0: a dense model")
    top_k: int = Field(2, gt=0, description="experts that each token goes to")
    ffn_hidden_size: int | None = Field(
        None, gt=0, description="inner width of one expert; null: that of a dense MLP"
    )
    num_shared_experts: int = Field(
        0, ge=0, description="experts that every token goes to, besides the top_k"
    )
    shared_ffn_hidden_size: int | None = Field(
        None, gt=0, description="inner width of one shared expert; null: that of an expert"
    )
    shared_expert_gate: bool = Field(
        False,
        description="the shared experts' output times sigmoid(w x), a number a token (Qwen2-MoE)",
    )
    capacity_factor: float | None = Field(
        None,
        gt=0,
        description="in training an expert takes at most this times its fair share of the tokens "
        "of a sequence and drops later ones; null: none is dropped",
    )
    balance_loss: float = Field(
        0.01, ge=0, description="weight of the load-balancing loss (Fedus et al. 2021); 0: off"
    )
    z_loss: float = Field(
        0.0, ge=0, description="weight of the loss on large router logits (Zoph et al. 2022)"
    )
    normalise_weights: bool | None = Field(
        None, description="the weights of a token's experts sum to 1; null: unless top_k is 1"
    )
    every: int = Field(
        1, gt=0, description="blocks number every, 2 x every, ... (from 1) have experts"
    )

    @property
    def normalises(self) -> bool:
        """Whether the chosen experts' weights are scaled to sum to 1, resolved.

        With one expert they would all be 1, and the router would learn nothing of the loss.
        """
        return self.top_k > 1 if self.normalise_weights is None else self.normalise_weights
