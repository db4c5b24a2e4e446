"""Decoders whose samples lie on two context ranks: loss and gradients are those of one process.

One step without an engine, so that every field that attention is told of is tried in seconds, under
both methods: what only one path of attention reads is forgotten by the other without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.data.batch import Batch
from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement
from roots.parallel.topology import Topology
from roots.training.micro_batch import model_inputs, share_of
from tests.helpers.decoders import random_inputs, small_decoder, small_model
from tests.helpers.distributed import run_distributed

TOLERANCE = 1e-5
METHODS = ("ulysses", "ring")


@dataclass(frozen=True)
class Case:
    """Fields of the model, and of BuildOptions."""

    name: str
    fields: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("rotary", {"position": "rotary"}),
    Case("window", {"position": "rotary", "window": 7}),
    Case("attention_scale", {"position": "rotary", "attention_scale": 0.6}),
    Case("one key head", {"position": "rotary", "num_kv_heads": 1}),
    Case("two key heads", {"position": "none", "num_kv_heads": 2, "qk_norm": True}),
    Case("learned, dropout", {"dropout": 0.2}),
    Case("documents together", {"position": "rotary"}, {"separate_documents": False}),
    Case("positions restart", {"position": "rotary"}, {"reset_positions": True}),
    Case("learned restart", {}, {"reset_positions": True}),
    Case(
        "router losses",
        {"moe": {"num_experts": 4, "ffn_hidden_size": 16, "balance_loss": 0.5, "z_loss": 0.1}},
    ),
)
# The ring draws no dropout of attention weights.
PAIRS = [
    *((method, case) for method in METHODS for case in CASES),
    ("ulysses", Case("attention dropout", {"attention_dropout": 0.2})),
]
IDS = [f"{method}: {case.name}" for method, case in PAIRS]
Step = tuple[float, dict[str, Tensor]]


def step_of(case: Case, mesh: Mesh, method: str) -> Step:
    """Loss and gradients of this rank's part of two samples whose tokens are not all counted."""
    model = small_model(init_std=0.2, **case.fields)
    decoder = small_decoder(model, mesh, context_method=method, **case.options).train()
    inputs = random_inputs(model, rows=2)
    # The first sample is predicted in its beginning, the second in its end: ranks count unalike.
    counted_BT = torch.ones_like(inputs.loss_weights_BT)
    counted_BT[0, 9:], counted_BT[1, :17] = 0.0, 0.0
    batch = Batch(
        tokens_BT=inputs.tokens_BT,
        labels_BT=inputs.labels_BT,
        loss_weights_BT=counted_BT / counted_BT.sum(1, keepdim=True),
        document_starts_BT=inputs.document_starts_BT,
        dropout_keys_B=inputs.dropout_keys_B,
        source_BS=inputs.tokens_BT[:, :0],
        source_lengths_B=torch.zeros(2, dtype=torch.int64),
    )
    mine = share_of(batch, Placement.on(mesh, sequence=False, zigzag=method == "ring"))
    loss = decoder(*model_inputs(model, mine), mine.labels_BT, mine.loss_weights_BT)
    loss.backward()
    gradients = {name: each.grad for name, each in decoder.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return loss.item(), gradients


def on_rank(rank: int, world_size: int) -> list[Step]:
    mesh = Mesh.create(Topology(context=world_size))
    return [step_of(case, mesh, method) for method, case in PAIRS]


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[Step]]:
    """What both ranks found, by name: all in one pair of processes."""
    return dict(zip(IDS, zip(*run_distributed(on_rank, 2), strict=True), strict=True))


@pytest.mark.distributed
@pytest.mark.parametrize("method, case", PAIRS, ids=IDS)
def test_two_context_ranks_equal_one_process(
    method: str, case: Case, ranks: dict[str, list[Step]]
) -> None:
    """The mean over the ranks is what the engine makes of losses and gradients."""
    loss, gradients = step_of(case, Mesh.single(), method)
    found = ranks[f"{method}: {case.name}"]
    assert sum(each for each, _ in found) / 2 == pytest.approx(loss, rel=TOLERANCE)
    for name, gradient in gradients.items():
        mean = sum(parts[name] for _, parts in found) / 2
        assert (mean - gradient).norm() <= TOLERANCE * gradient.norm() + 1e-7, name
