"""What tokens cost a model, and what it would have written instead.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roots.evaluation.likelihood import perplexity_of
from roots.inspection.rows import Row

# Probabilities are told to this many decimals.
DECIMALS = 4


def nats_of_row(log_probabilities_TV: Tensor, row: Row) -> Tensor:
    """-log p of the tokens that are predicted, in their order."""
    tokens_T, predicted_T = row.tokens_1T[0], row.predicted_T
    before_TV = log_probabilities_TV[:-1][predicted_T[1:]]
    return -before_TV.gather(1, tokens_T[1:][predicted_T[1:], None]).squeeze(1)


def likeliest(log_probabilities_TV: Tensor, count: int) -> list[list[list[float]]]:
    """The `count` likeliest tokens after every token, as [id, probability] each."""
    values_Tk, ids_Tk = log_probabilities_TV.topk(min(count, log_probabilities_TV.shape[-1]))
    rows = zip(ids_Tk.tolist(), values_Tk.exp().tolist(), strict=True)
    return [
        [[token, round(p, DECIMALS)] for token, p in zip(ids, probabilities, strict=True)]
        for ids, probabilities in rows
    ]


@dataclass
class Losses:
    """The losses of all rows, and those of the first token by token."""

    top: int
    total: float = 0.0
    tokens: int = 0
    of_tokens: list[float | None] = field(default_factory=list)
    predictions: list[list[list[float]]] = field(default_factory=list)

    def add(self, log_probabilities_TV: Tensor, row: Row) -> None:
        """Count a row; the first one is shown."""
        nats = nats_of_row(log_probabilities_TV, row)
        self.total += float(nats.double().sum())
        self.tokens += len(nats)
        if not self.predictions:
            of_tokens_T = torch.full((len(row.predicted_T),), torch.nan, device=nats.device)
            of_tokens_T[row.predicted_T] = nats
            self.of_tokens = [
                None if math.isnan(each) else round(each, DECIMALS) for each in of_tokens_T.tolist()
            ]
            self.predictions = likeliest(log_probabilities_TV, self.top)

    def summary(self) -> dict[str, Any]:
        """mean in nats a token over all rows; of the first row the loss of every token (None: it is
        not predicted) and the likeliest tokens behind it."""
        mean = self.total / max(self.tokens, 1)
        return {
            "mean": mean,
            "perplexity": perplexity_of(mean),
            "tokens": self.tokens,
            "of_tokens": self.of_tokens,
            "predictions": self.predictions,
        }


def ids_in(predictions: Sequence[Sequence[Sequence[float]]]) -> set[int]:
    """The ids that `likeliest` names."""
    return {int(token) for row in predictions for token, _ in row}
