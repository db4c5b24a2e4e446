"""The section `model.rotary_scaling`: rotary positions beyond the length a model began with."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from roots.config.section import Section

RotaryKind = Literal["none", "linear", "ntk", "yarn", "llama3"]


class RotaryScaling(Section):
    """How rotary frequencies are stretched; formulas: roots/models/attention/rotary.py."""

    kind: RotaryKind = Field(
        "none",
        description="linear: positions divided by factor; ntk: a larger base; yarn (Peng et al. "
        "2023) and llama3: low frequencies divided, high ones kept",
    )
    factor: float = Field(1.0, ge=1, description="how many times longer sequences become")
    original_length: int | None = Field(
        None, gt=0, description="tokens per sample before the stretch; yarn and llama3 need it"
    )
    low_frequency: float = Field(
        1.0, gt=0, description="llama3: fewer turns than this over original_length are divided"
    )
    high_frequency: float = Field(
        4.0, gt=0, description="llama3: more turns than this over original_length are kept"
    )
    beta_fast: float = Field(32.0, gt=0, description="yarn: turns above which dims are kept")
    beta_slow: float = Field(1.0, gt=0, description="yarn: turns below which dims are divided")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn: scale of cos and sin; null: 1 + 0.1 ln(factor)"
    )

    @property
    def amplitude(self) -> float:
        """What cosine and sine are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 + 0.1 * math.log(self.factor)
