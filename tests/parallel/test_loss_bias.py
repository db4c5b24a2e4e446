"""The bias of the head, cut over the tensor axis like the matrix: values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from roots.parallel.loss import linear_cross_entropy, vocab_parallel_logits
from roots.parallel.mesh import Mesh
from roots.parallel.shard import even, gather_full, slice_full
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed
from tests.parallel.test_loss import (
    DTYPES,
    HIDDEN,
    PADDED,
    ROWS,
    TOKENS,
    VOCAB,
    Result,
    make_case,
    plain,
)


def _with_bias(rank: int, world_size: int, dtype: torch.dtype) -> Result:
    """Loss and gradients of a head with a bias, of which this rank has its share."""
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    case = make_case(dtype)
    generator = torch.Generator().manual_seed(4)
    bias_V = torch.randn(PADDED, generator=generator).to(dtype)
    shards = {
        "dweight": even("head.weight", (PADDED, HIDDEN), 0, axis),
        "dbias": even("head.bias", (PADDED,), 0, axis),
    }
    x = case.x_BTH.clone().requires_grad_()
    weight = slice_full(case.weight_VH, shards["dweight"]).requires_grad_()
    bias = slice_full(bias_V, shards["dbias"]).requires_grad_()
    loss = linear_cross_entropy(
        x,
        weight,
        case.labels_BT,
        case.loss_weights_BT,
        axis=axis,
        vocab_size=VOCAB,
        bias_v=bias,
        label_smoothing=0.1,
        z_loss=0.01,
        chunk_tokens=7,
    )
    (loss * 4096.0).backward()
    found = {"loss": loss.detach(), "dx": x.grad}
    for name, parameter in (("dweight", weight), ("dbias", bias)):
        found[name] = gather_full(parameter.grad, shards[name], axis)
    logits = vocab_parallel_logits(x, weight, axis, VOCAB, bias)
    return {**found, "logits": logits.detach()}


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_of_the_head_is_one_more_column_of_the_weight(dtype: torch.dtype) -> None:
    """Which a column of ones in x meets; in fp32 to rounding, in 16 bits to theirs."""
    case = make_case(torch.float64)
    generator = torch.Generator().manual_seed(4)
    bias_V = torch.randn(PADDED, generator=generator).to(dtype).double()
    rounded = make_case(dtype)
    wide = replace(
        case,
        x_BTH=torch.cat((rounded.x_BTH.double(), torch.ones(ROWS, TOKENS, 1).double()), dim=-1),
        weight_VH=torch.cat((rounded.weight_VH.double(), bias_V[:, None]), dim=1),
        label_smoothing=0.1,
        z_loss=0.01,
    )
    gold = plain(wide, 4096.0)
    expected = {
        "loss": gold["loss"],
        "dx": gold["dx"][..., :HIDDEN],
        "dweight": gold["dweight"][:, :HIDDEN],
        "dbias": gold["dweight"][:, HIDDEN],
        "logits": functional.linear(wide.x_BTH, wide.weight_VH[:VOCAB]),
    }
    for found in run_distributed(_with_bias, 2, dtype):
        for name, value in expected.items():
            error = (found[name].double() - value).norm() / value.norm()
            assert error < 4 * torch.finfo(dtype).eps, name
