"""How the residual stream grows from block to block, and who wrote it.

Legend: B rows, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class ResidualTally:
    """Means over the tokens of all rows. `adds`: no norm stands behind the branches, so that the
    stream behind the last block is the sum of its beginning and of all branches."""

    adds: bool
    tokens: int = 0
    norms: dict[int, float] = field(default_factory=dict)
    branch_norms: dict[tuple[int, str], float] = field(default_factory=dict)
    shares: dict[tuple[int, str], float] = field(default_factory=dict)

    def add(self, stream: Mapping[int, Tensor], branches: Mapping[tuple[int, str], Tensor]) -> None:
        """Count what was watched in a forward of rows without padding."""
        last_BTH = stream[max(stream)].float()
        self.tokens += last_BTH.shape[0] * last_BTH.shape[1]
        for place, x_BTH in sorted(stream.items()):
            self.norms[place] = self.norms.get(place, 0.0) + _sum(x_BTH.float().norm(dim=-1))
        for key, y_BTH in sorted(branches.items()):
            before = self.branch_norms.get(key, 0.0)
            self.branch_norms[key] = before + _sum(y_BTH.float().norm(dim=-1))
        if self.adds:
            written = {(-1, "embedding"): stream[0], **branches}
            for key, y_BTH in written.items():
                along_BT = (y_BTH.float() * last_BTH).sum(-1)
                share = _sum(along_BT / last_BTH.square().sum(-1).clamp_min(1e-30))
                self.shares[key] = self.shares.get(key, 0.0) + share

    def summary(self) -> dict[str, Any]:
        """norms: mean length of the stream before each block and behind the last; branches: of
        each that of what it adds, over the stream before its block, and its share.

        The share is y . x / x . x, with x what stands behind the last block: how much of it along
        its own direction comes from there. They add up to 1; None where norms stand between.
        """
        tokens = max(self.tokens, 1)
        norms = {place: total / tokens for place, total in self.norms.items()}
        branches = [
            {
                "block": block,
                "branch": name,
                "norm": total / tokens,
                "relative": total / tokens / norms[block] if norms[block] else None,
                "share": self._share((block, name)),
            }
            for (block, name), total in self.branch_norms.items()
        ]
        return {
            "norms": [norms[place] for place in sorted(norms)],
            "embedding_share": self._share((-1, "embedding")),
            "branches": branches,
        }

    def _share(self, key: tuple[int, str]) -> float | None:
        return self.shares[key] / max(self.tokens, 1) if key in self.shares else None


def _sum(values: Tensor) -> float:
    return float(values.to(torch.float64).sum())
