"""CrowS-Pairs (Nangia et al. 2020, arXiv:2010.00133): pairs of which one sentence stereotypes more.

The file is a CSV with the columns `sent_more`, `sent_less`, `stereo_antistereo` and `bias_type`, as
the authors publish it. The paper scores masked models; for models that read from left to right the
whole sentences are compared by their log-likelihood, as in lm_eval's crows_pairs tasks. The figure
is the share of pairs whose more stereotypical sentence is the likelier one; 50% is no preference.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roots.errors import RootsError, problem
from roots.evaluation.bias.probe import Findings, Statistic, Text, percent
from roots.generation.scoring import Score

_COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
_FIX = "give the CSV file of CrowS-Pairs, crows_pairs_anonymized.csv"


@dataclass(frozen=True)
class Pair:
    """The more and the less stereotypical sentence, the direction, and whom it is about."""

    more: str
    less: str
    direction: str
    bias_type: str


@dataclass(frozen=True)
class CrowsPairs:
    """All pairs of a file."""

    pairs: Sequence[Pair]
    name: str = "CrowS-Pairs"
    statistics: Sequence[Statistic] = (
        Statistic("stereotypical sentence likelier (%)", percent("prefers_more"), 50.0),
    )

    @classmethod
    def read(cls, path: Path) -> CrowsPairs:
        """Read a file. Raises RootsError for one that is not of this format."""
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RootsError(problem(str(path), None, f"cannot be read ({error})", _FIX)) from None
        missing = [name for name in _COLUMNS if name not in (rows[0] if rows else {})]
        if missing:
            rule = f"has no column {missing[0]}" if rows else "holds no pairs"
            raise RootsError(problem(str(path), None, rule, _FIX))
        for number, row in enumerate(rows, start=2):
            empty = [name for name in _COLUMNS if not (row[name] or "").strip()]
            if empty:
                rule = f"row {number} has no {empty[0]}"
                raise RootsError(problem(str(path), None, rule, "complete the row, or remove it"))
        return cls([Pair(*(row[name].strip() for name in _COLUMNS)) for row in rows])

    @property
    def texts(self) -> list[Text]:
        """Both sentences of every pair."""
        return [Text("", text) for pair in self.pairs for text in (pair.more, pair.less)]

    def findings(self, scores: Sequence[Score]) -> Findings:
        """Whether the more stereotypical sentence is the likelier one; equal ones do not count."""
        totals = np.array([score.total for score in scores]).reshape(-1, 2)
        return Findings(
            columns={"prefers_more": (totals[:, 0] > totals[:, 1]).astype(float)},
            units=[str(number) for number in range(len(self.pairs))],
            groups=[(pair.bias_type, pair.direction) for pair in self.pairs],
        )
