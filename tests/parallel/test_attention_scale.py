"""attention_scale = s is the usual 1 / sqrt(D) for queries that are s sqrt(D) times as large.

Over the context axis both methods are held against one process with the usual scale and larger
query weights, so that no side uses the other's arithmetic of the scale; documents and a window too.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.models.decoder import Decoder
from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement
from roots.parallel.process import all_gather_tensors, all_reduce_sum
from roots.parallel.topology import Topology
from tests.helpers.decoders import random_inputs, small_decoder, small_model
from tests.helpers.distributed import run_distributed

SCALE = 0.8
FIELDS: dict[str, Any] = {"position": "rotary", "num_kv_heads": 2, "window": 7, "init_std": 0.2}
METHODS = ("ulysses", "ring")
TABLE = "embedding.tokens.weight"


def larger_queries() -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the table of a fixed sum of them, of one process."""
    model = small_model(**FIELDS)
    decoder = small_decoder(model)
    factor = SCALE * math.sqrt(model.head_size)
    for name, parameter in decoder.named_parameters():
        if ".qkv." in name:
            parameter.data[: model.num_heads * model.head_size] *= factor
    inputs = random_inputs(model)
    logits = decoder(inputs.tokens_BT, inputs.document_starts_BT, inputs.dropout_keys_B)
    (logits * fixed(logits.shape)).sum().backward()
    return logits.detach(), table_of(decoder)


def over_ranks(rank: int, world_size: int) -> list[tuple[Tensor, Tensor]]:
    """The same per method with attention_scale, tokens in the order of the sample."""
    mesh = Mesh.create(Topology(context=world_size))
    model = small_model(**FIELDS, attention_scale=SCALE)
    inputs = random_inputs(model)
    length = inputs.tokens_BT.shape[1]
    found = []
    for method in METHODS:
        place = Placement.on(mesh, sequence=False, zigzag=method == "ring")
        decoder = small_decoder(model, mesh, context_method=method)
        tokens_BT = place.take(inputs.tokens_BT, 1)
        logits = decoder(tokens_BT, inputs.document_starts_BT, inputs.dropout_keys_B)
        weights = place.take(fixed((len(tokens_BT), length, model.vocab_size)), 1)
        (logits * weights).sum().backward()
        positions_T = place.positions(length, torch.device("cpu"))
        order_T = torch.cat(all_gather_tensors(mesh.context, positions_T)).argsort()
        whole = torch.cat(all_gather_tensors(mesh.context, logits), 1)[:, order_T]
        found.append((whole, all_reduce_sum(mesh.context, table_of(decoder))))
    return found


def fixed(shape: tuple[int, ...]) -> Tensor:
    """What the logits are multiplied by to get a number, the same everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def table_of(decoder: Decoder) -> Tensor:
    gradient = dict(decoder.named_parameters())[TABLE].grad
    assert gradient is not None
    return gradient


@pytest.mark.distributed
def test_scale_is_that_of_larger_queries() -> None:
    expected = larger_queries()
    for methods in run_distributed(over_ranks, 2):
        for method, found in zip(METHODS, methods, strict=True):
            for name, ours, theirs in zip(("logits", TABLE), found, expected, strict=True):
                difference = float((ours - theirs).abs().max() / theirs.abs().max())
                assert difference < 1e-5, (method, name, difference)
