"""Loads of experts and entropies of routers, by routers made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from roots.config.moe import MoEConfig
from roots.inspection.experts import ExpertTally


def test_one_expert_that_has_all_and_experts_used_alike() -> None:
    moe = MoEConfig(num_experts=4, top_k=1)
    tally = ExpertTally(moe, shown=3)
    one = torch.tensor([9.0, 0.0, 0.0, 0.0]).expand(1, 8, 4)
    even = torch.eye(4)[torch.arange(8) % 4][None] * 1e-3
    tally.add({2: one, 5: even})
    tally.add({2: one, 5: even})
    first, second = tally.summary()
    assert (first["block"], second["block"]) == (2, 5)
    assert first["load"] == [1.0, 0.0, 0.0, 0.0]
    assert first["largest"] == 4.0
    assert first["load_entropy"] == 0.0
    assert first["entropy"] < 0.01
    assert first["choices"] == [[0], [0], [0]]
    assert second["load"] == [0.25] * 4
    assert second["largest"] == 1.0
    assert second["load_entropy"] == pytest.approx(1.0)
    assert second["entropy"] == pytest.approx(1.0, abs=1e-5)
    assert second["choices"] == [[0], [1], [2]]


def test_load_counts_choices_of_all_ranks_of_preference() -> None:
    tally = ExpertTally(MoEConfig(num_experts=3, top_k=2), shown=1)
    tally.add({0: torch.tensor([[[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]]])})
    (row,) = tally.summary()
    assert row["load"] == [0.5, 0.25, 0.25]
    assert row["choices"] == [[0, 1]]
    p = torch.tensor([3.0, 2.0, 1.0]).softmax(0)
    entropy = -float((p * p.log()).sum()) / math.log(3)
    assert row["entropy"] == pytest.approx(entropy)
    assert ExpertTally(MoEConfig(), shown=1).summary() == []
