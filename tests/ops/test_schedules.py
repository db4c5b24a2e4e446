"""Nothing that a kernel of any op writes depends on the order in which its threads run.

Attention, with its many kernels: tests/ops/test_attention_tiles.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from roots import ops
from roots.device import build_environment
from roots.ops.library.toolchain import BuildError, find_toolchain

SEEDS = range(1, 6)
PLACE = {"implementation": "simulator"}

Operands = Callable[..., Tensor]
Outputs = tuple[Tensor, ...]


def bias_dropout_add(normal: Operands) -> Outputs:
    x, residual = normal(3, 50, 72), normal(3, 50, 72)
    return (ops.bias_dropout_add(x, normal(72), residual, 0.3, torch.arange(3), "site", **PLACE),)


def bias_gelu(normal: Operands) -> Outputs:
    return (ops.bias_gelu(normal(150, 72), normal(72), "tanh", **PLACE),)


def cross_entropy(normal: Operands) -> Outputs:
    labels = torch.arange(9) * 300
    labels[4] = -100
    return (ops.cross_entropy(normal(9, 3001), labels, label_smoothing=0.1, z_loss=0.01, **PLACE),)


def layer_norm(normal: Operands) -> Outputs:
    return ops.layer_norm(
        normal(150, 200), normal(200), normal(200), residual=normal(150, 200), **PLACE
    )


def rms_norm(normal: Operands) -> Outputs:
    return ops.rms_norm(normal(150, 200), normal(200), residual=normal(150, 200), **PLACE)


def rotary(normal: Operands) -> Outputs:
    table = ops.rotary_table(torch.arange(40), 32)
    return (ops.rotary(normal(2, 40, 3, 32), *table, **PLACE),)


def scaled_masked_softmax(normal: Operands) -> Outputs:
    return (ops.scaled_masked_softmax(normal(2, 2, 20, 300), None, 0.5, causal=True, **PLACE),)


def swiglu(normal: Operands) -> Outputs:
    return (ops.swiglu(normal(150, 144), normal(144), **PLACE),)


DIFFERENTIABLE = (
    bias_dropout_add,
    bias_gelu,
    cross_entropy,
    layer_norm,
    rms_norm,
    rotary,
    scaled_masked_softmax,
    swiglu,
)


@pytest.fixture(scope="module", autouse=True)
def _simulator_can_be_built() -> None:
    try:
        find_toolchain(build_environment(), needs_cuda=True, needs_nvcc=False)
    except BuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=lambda call: call.__name__)
def test_schedules_do_not_change_a_bit(
    call: Callable[[Operands], Outputs], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOTS_SIMULATOR_SEED", "0")
    expected = outputs_and_gradients(call, dtype)
    for seed in SEEDS:
        monkeypatch.setenv("ROOTS_SIMULATOR_SEED", str(seed))
        actual = outputs_and_gradients(call, dtype)
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True)), seed


def test_schedules_do_not_change_the_first_tensor_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.zeros(count) for count in (7, 5000, 3, 9000)]
    tensors[1][4999] = torch.nan
    tensors[3][0] = torch.inf
    for seed in SEEDS:
        monkeypatch.setenv("ROOTS_SIMULATOR_SEED", str(seed))
        assert ops.check_finite(tensors, **PLACE).item() == 1, seed


def outputs_and_gradients(
    call: Callable[[Operands], Outputs], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """What `call` gives for operands that are the same at every call, and all their gradients."""
    generator = torch.Generator().manual_seed(0)
    leaves: list[Tensor] = []

    def normal(*shape: int) -> Tensor:
        leaves.append(torch.randn(shape, generator=generator).to(dtype).requires_grad_())
        return leaves[-1]

    outputs = call(normal)
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    return (*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, grads))
