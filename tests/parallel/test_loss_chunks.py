"""The head's gradients in 16 bits do not get worse with the number of chunks of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from roots.parallel.loss import linear_cross_entropy
from roots.parallel.mesh import Mesh

TOKENS, HIDDEN, VOCAB = 2048, 32, 64


def errors(dtype: torch.dtype, chunks: int, upstream: float) -> dict[str, float]:
    """Relative errors of the gradients of weight and bias; fp64 with the same inputs is right.

    What enters the head has a mean of 1, so that the parts of a row of the gradient add up instead
    of cancelling: a sum in 16 bits would soon stand still.
    """
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(1, TOKENS, HIDDEN, generator=generator) * 0.2 + 1).to(dtype)
    weight = (torch.randn(VOCAB, HIDDEN, generator=generator) * 0.05).to(dtype).requires_grad_()
    bias = (torch.randn(VOCAB, generator=generator) * 0.05).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCAB, (1, TOKENS), generator=generator)
    loss = linear_cross_entropy(
        x,
        weight,
        labels,
        torch.full((1, TOKENS), 1 / TOKENS),
        axis=Mesh.single().tensor,
        vocab_size=VOCAB,
        bias_v=bias,
        chunk_tokens=TOKENS // chunks,
    )
    (loss * upstream).backward()
    exact = [each.detach().double().requires_grad_() for each in (weight, bias)]
    functional.cross_entropy(functional.linear(x[0].double(), *exact), labels[0]).backward()
    return {
        name: _relative(found.grad, right.grad * upstream)
        for name, found, right in zip(("weight", "bias"), (weight, bias), exact, strict=True)
    }


def _relative(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize(
    ("dtype", "upstream"), [(torch.bfloat16, 1.0), (torch.float16, 65536.0)], ids=["bf16", "fp16"]
)
def test_error_does_not_grow_with_the_number_of_chunks(dtype: torch.dtype, upstream: float) -> None:
    """Summed in 16 bits the weight's error is 2.8, 4.6 and 9 times that of one chunk and more."""
    one = errors(dtype, 1, upstream)
    for chunks in (32, 64, 256):
        many = errors(dtype, chunks, upstream)
        for name, error in many.items():
            # Every chunk's product is rounded as the only chunk's is, and their sum once more.
            assert error < 1.5 * one[name], (chunks, name)
