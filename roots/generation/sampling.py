"""The choice of the next token from its logits.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from roots.errors import RootsError, problem


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a token is chosen.

    greedy:      always the most probable one; the other fields then play no part
    temperature: logits are divided by it; below 1 sharpens
    top_k:       only the k most probable tokens; 0: all
    top_p:       only the most probable tokens that together reach probability p (Holtzman et al.,
                 "The Curious Case of Neural Text Degeneration", 2020); 1: all
    Raises RootsError with every field that is out of range.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        lines = []
        if not 0 < self.temperature < math.inf:
            fix = "choose greedily for the limit at 0"
            rule = "must be above 0, and finite"
            lines.append(problem("temperature", self.temperature, rule, fix))
        if self.top_k < 0:
            lines.append(problem("top_k", self.top_k, "must not be negative", "use 0 for all"))
        if not 0 < self.top_p <= 1:
            lines.append(problem("top_p", self.top_p, "must be in (0, 1]", "use 1 for all"))
        if lines:
            raise RootsError(*lines)


def choose_tokens(
    logits_BV: Tensor, options: SamplingOptions, generator: torch.Generator
) -> Tensor:
    """tokens_B int64 drawn from logits_BV; `generator` lives on the device of the logits."""
    if options.greedy:
        return logits_BV.argmax(dim=-1)
    # fp32: 16-bit probabilities would not add up over a large vocabulary.
    logits_BV = _restrict(logits_BV.float() / options.temperature, options)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(-1)


def _restrict(logits_BV: Tensor, options: SamplingOptions) -> Tensor:
    """-inf for tokens outside of top_k and top_p; top_p counts what top_k has left."""
    if 0 < options.top_k < logits_BV.shape[-1]:
        smallest_B1 = logits_BV.topk(options.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    if options.top_p < 1.0:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probabilities_BV = sorted_BV.softmax(-1)
        # A token is kept if those before it fall short of p; so the first always is.
        before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
        sorted_BV = sorted_BV.masked_fill(before_BV >= options.top_p, -torch.inf)
        logits_BV = torch.empty_like(sorted_BV).scatter_(-1, order_BV, sorted_BV)
    return logits_BV
