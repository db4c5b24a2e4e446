"""Rotary frequencies of a model, stretched to longer sequences as its config says.

With R = rotary_size / 2 frequencies f[r] = base^(-r / R), a factor s and turns(r) = L f[r] / 2 pi,
the full turns of dim r over the original length L:

    linear  f[r] / s                                      (Chen et al. 2023, arXiv:2306.15595)
    ntk     f[r] with the base times s^(R / (R - 1)): the last frequency becomes f / s, the first
            stays                                         (bloc97, "NTK-aware scaled RoPE", 2023)
    yarn    (1 - k[r]) f[r] / s + k[r] f[r], k falling linearly in r from 1, where a dim makes
            beta_fast turns, to 0, where it makes beta_slow; cosine and sine times an amplitude
                                                          (Peng et al. 2023, arXiv:2309.00071)
    llama3  the same mix with k = (turns - low) / (high - low), cut to [0, 1]
                                                          (Llama 3.1, Meta 2024)

Legend: R rotary angles of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.config.rotary import RotaryScaling


def rotary_frequencies(model: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Return the angle that one position adds to every rotated pair: float64 [R]."""
    scaling, half, base = model.rotary_scaling, model.rotary_size // 2, model.rotary_base
    if scaling.kind == "ntk" and half > 1:
        base *= scaling.factor ** (half / (half - 1))
    index_R = torch.arange(half, dtype=torch.float64, device=device)
    kept_R = base ** (-index_R / half)
    if scaling.kind in ("none", "ntk"):
        return kept_R
    divided_R = kept_R / scaling.factor
    if scaling.kind == "linear":
        return divided_R
    assert scaling.original_length is not None, "checked by the rules of the config"
    if scaling.kind == "yarn":
        share_R = _yarn_share(index_R, scaling, scaling.original_length, base)
    else:
        turns_R = scaling.original_length * kept_R / (2 * math.pi)
        share_R = (turns_R - scaling.low_frequency) / (
            scaling.high_frequency - scaling.low_frequency
        )
    return torch.lerp(divided_R, kept_R, share_R.clamp(0.0, 1.0))


def _yarn_share(index_R: Tensor, scaling: RotaryScaling, length: int, base: float) -> Tensor:
    """Return k[r], with its two ends rounded outwards to whole dims, as published."""
    half = len(index_R)

    def dim_that_makes(turns: float) -> float:
        return half * math.log(length / (turns * 2 * math.pi)) / math.log(base)

    first = max(math.floor(dim_that_makes(scaling.beta_fast)), 0)
    last = min(math.ceil(dim_that_makes(scaling.beta_slow)), 2 * half - 1)
    return 1.0 - (index_R - first) / max(last - first, 1e-3)
