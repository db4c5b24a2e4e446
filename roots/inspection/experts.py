"""Which experts tokens go to, and how sure the routers are.

Legend: B rows, T tokens, E experts, k experts of a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roots.config.moe import MoEConfig
from roots.models.moe.routing import expert_counts, route


@dataclass
class ExpertTally:
    """Counts over the tokens of all rows, and the choices of the first one."""

    moe: MoEConfig
    shown: int
    tokens: int = 0
    counts: dict[int, Tensor] = field(default_factory=dict)
    entropies: dict[int, float] = field(default_factory=dict)
    choices: dict[int, list[list[int]]] = field(default_factory=dict)

    def add(self, logits: Mapping[int, Tensor]) -> None:
        """Count the router logits_BTE of every block that has experts."""
        for block, logits_BTE in sorted(logits.items()):
            experts_BTk = route(logits_BTE, self.moe, drops=False).experts_BTk
            counts_E = expert_counts(experts_BTk, logits_BTE.shape[-1]).sum(0).cpu()
            self.counts[block] = self.counts.get(block, 0) + counts_E
            entropy = float(_entropy(logits_BTE.softmax(-1)).double().sum())
            self.entropies[block] = self.entropies.get(block, 0.0) + entropy
            self.choices.setdefault(block, experts_BTk[0, : self.shown].tolist())
        if logits:
            self.tokens += next(iter(logits.values())).shape[:2].numel()

    def summary(self) -> list[dict[str, Any]]:
        """A row for every block with experts.

        load:           share of all choices that fell on each expert
        largest:        the largest load over that of an even one
        entropy:        of the router's probabilities, mean over tokens: 1 for even ones, 0 for one
        load_entropy:   of the load: 1 where all experts are used alike, 0 where one has all
        choices:        of the first row the experts of every token, best first
        """
        rows = []
        for block, counts_E in self.counts.items():
            load_E = counts_E / counts_E.sum()
            whole = math.log(len(load_E)) or 1.0
            rows.append(
                {
                    "block": block,
                    "load": [round(each, 4) for each in load_E.tolist()],
                    "largest": float(load_E.max()) * len(load_E),
                    "entropy": self.entropies[block] / max(self.tokens, 1) / whole,
                    "load_entropy": float(_entropy(load_E)) / whole,
                    "choices": self.choices[block],
                }
            )
        return rows


def _entropy(probabilities_E: Tensor) -> Tensor:
    return torch.special.entr(probabilities_E).sum(-1)
