"""The choice of the next token from its logits.

Legend: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roots.errors import RootsError, problem


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a token is chosen: penalties, temperature, then what is left out, then chance.

    greedy:      always the most probable one; but for penalties the other fields then play no part
    temperature: logits are divided by it; below 1 sharpens
    top_k:       only the k most probable tokens; 0: all
    top_p:       only the most probable tokens that together reach probability p (Holtzman et al.,
                 "The Curious Case of Neural Text Degeneration", 2020); 1: all
    min_p:       only tokens of at least this share of the largest probability (Nguyen et al.,
                 arXiv:2407.01082); 0: all
    repetition_penalty: positive logits of tokens that the text has are divided by it, others
                 multiplied (Keskar et al., CTRL, arXiv:1909.05858), prompt included; 1: none
    frequency_penalty:  taken from a token's logit for every time it was written, prompt excluded
    presence_penalty:   taken from it once if it was
    Raises RootsError with every field that is out of range.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

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
        if not 0 <= self.min_p <= 1:
            lines.append(problem("min_p", self.min_p, "must be in [0, 1]", "use 0 for all"))
        if not 0 < self.repetition_penalty < math.inf:
            rule = "must be above 0, and finite"
            lines.append(
                problem("repetition_penalty", self.repetition_penalty, rule, "use 1 for none")
            )
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            if not math.isfinite(value):
                lines.append(problem(name, value, "must be finite", "use 0 for none"))
        if lines:
            raise RootsError(*lines)

    @property
    def penalises(self) -> bool:
        """Whether the choice depends on the tokens before it."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )


class Chooser:
    """Chooses the tokens of one text, at random from a generator of its own.

    So a text depends on its prompt, options and seed alone, and not on what is written beside it.
    """

    def __init__(self, options: SamplingOptions, seed: int, device: torch.device) -> None:
        self.options = options
        self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def takes_likeliest(self) -> bool:
        """Whether it always chooses the largest logit, as it is."""
        return self.options.greedy and not self.options.penalises

    def choose(self, logits_V: Tensor, prompt: Sequence[int], new: Sequence[int]) -> int:
        """The token behind `prompt` and `new`, from its logits."""
        options = self.options
        if options.penalises:
            logits_V = penalised(logits_V, options, prompt, new)
        if options.greedy:
            return int(logits_V.argmax())
        probabilities_V = probabilities(logits_V, options)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))


def probabilities(logits_V: Tensor, options: SamplingOptions) -> Tensor:
    """What a token is drawn from, float32 [V]."""
    # 16-bit probabilities would not add up over a large vocabulary.
    return _restrict(logits_V.float() / options.temperature, options).softmax(-1)


def penalised(
    logits_V: Tensor, options: SamplingOptions, prompt: Sequence[int], new: Sequence[int]
) -> Tensor:
    """Logits behind `prompt` and `new` with the penalties of `options`, float32 [V]."""
    logits_V, device = logits_V.float(), logits_V.device
    if options.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *new}), dtype=torch.int64, device=device)
        at_seen = logits_V[seen]
        lower = at_seen * options.repetition_penalty
        raised = at_seen / options.repetition_penalty
        logits_V = logits_V.index_copy(0, seen, torch.where(at_seen < 0, lower, raised))
    if new and (options.frequency_penalty or options.presence_penalty):
        counts_V = torch.bincount(torch.tensor(new, device=device), minlength=len(logits_V))
        logits_V = logits_V - options.frequency_penalty * counts_V
        logits_V = logits_V - options.presence_penalty * (counts_V > 0)
    return logits_V


def _restrict(logits_V: Tensor, options: SamplingOptions) -> Tensor:
    """-inf for tokens outside of top_k, top_p and min_p; each counts what the one before left."""
    if 0 < options.top_k < len(logits_V):
        smallest = logits_V.topk(options.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, -torch.inf)
    if options.top_p < 1.0:
        sorted_V, order_V = logits_V.sort(descending=True)
        probabilities_V = sorted_V.softmax(-1)
        # A token is kept if those before it fall short of p; so the first always is.
        before_V = probabilities_V.cumsum(-1) - probabilities_V
        sorted_V = sorted_V.masked_fill(before_V >= options.top_p, -torch.inf)
        logits_V = torch.empty_like(sorted_V).scatter_(-1, order_V, sorted_V)
    if options.min_p > 0.0:
        least = logits_V.max() + math.log(options.min_p)
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    return logits_V
