"""Lengths of the residual stream, and shares that add up to all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roots.inspection.hooks import branch_outputs, residual_stream
from roots.inspection.residual import ResidualTally
from tests.helpers.decoders import random_inputs, small_decoder, small_model


def summary_of(norm_position: str) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
    decoder = small_decoder(small_model(norm_position=norm_position, init_std=0.2)).eval()
    tally = ResidualTally(adds=norm_position == "pre")
    inputs = random_inputs(decoder.model)
    with torch.no_grad(), residual_stream(decoder) as stream, branch_outputs(decoder) as branches:
        decoder(*inputs[:3])
    for index in range(3):  # row by row, as an inspection reads
        tally.add(
            {place: x_BTH[index : index + 1] for place, x_BTH in stream.items()},
            {key: y_BTH[index : index + 1] for key, y_BTH in branches.items()},
        )
    return tally.summary(), stream


def test_norms_are_means_over_tokens_and_shares_add_up() -> None:
    summary, stream = summary_of("pre")
    expected = [float(stream[place].norm(dim=-1).mean()) for place in range(3)]
    assert summary["norms"] == pytest.approx(expected)
    names = [(row["block"], row["branch"]) for row in summary["branches"]]
    assert names == [(0, "attention"), (0, "mlp"), (1, "attention"), (1, "mlp")]
    shares = [row["share"] for row in summary["branches"]]
    assert summary["embedding_share"] + sum(shares) == pytest.approx(1.0, abs=1e-5)
    for row in summary["branches"]:
        assert row["relative"] == pytest.approx(row["norm"] / expected[row["block"]])


def test_there_are_no_shares_where_norms_stand_between() -> None:
    summary, _ = summary_of("post")
    assert summary["embedding_share"] is None
    assert {row["share"] for row in summary["branches"]} == {None}
