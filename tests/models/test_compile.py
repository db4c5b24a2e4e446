"""torch.compile takes a whole block, kernels and all, as one graph.

Legend: B micro-batch, T tokens, H hidden.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from roots.config.data import OpsConfig
from roots.config.model import ModelConfig
from roots.models.attention.geometry import GeometryMemo
from roots.models.block import Block
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement
from tests.helpers.decoders import random_inputs, small_model

KERNELS = {
    name: "roots"
    for name, field in OpsConfig.model_fields.items()
    if "roots" in get_args(field.annotation)
}
GPT: dict[str, Any] = {"activation": "gelu_tanh", "norm": "layer_norm", "position": "learned"}
LLAMA: dict[str, Any] = {
    "activation": "swiglu",
    "norm": "rms_norm",
    "position": "rotary",
    "num_kv_heads": 2,
    "bias": False,
}


def block_of(model: ModelConfig, dtype: torch.dtype) -> Block:
    """With every kernel that there is, on a CPU."""
    ops = OpsConfig.model_validate(KERNELS)
    options = BuildOptions(dtype=dtype, ops=ops, reset_positions=model.position == "rotary")
    place = Placement.on(Mesh.single(), sequence=False, zigzag=False)
    geometry = GeometryMemo(model, options, place)
    block = Block(model, 0, mesh=Mesh.single(), options=options, geometry=geometry)
    initialise(block, 1, model)
    return block.train()


def run(block: Any, inputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of `leaves`."""
    y_BTH = block(inputs)[0]
    dy_BTH = torch.randn(y_BTH.shape, generator=torch.Generator().manual_seed(9)).to(y_BTH.dtype)
    return [y_BTH.detach(), *torch.autograd.grad(y_BTH, leaves, dy_BTH)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [GPT, LLAMA], ids=["gpt", "llama"])
def test_a_block_compiles_into_one_graph(changes: dict[str, Any], dtype: torch.dtype) -> None:
    """With dropout and packed documents; its numbers are those of the eager block."""
    expected, actual = eager_and_compiled(changes, dtype, "aot_eager")
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_generated_code_draws_the_same_masks() -> None:
    """The compiler's own code round about the kernels: it once computed other keys of tokens."""
    expected, actual = eager_and_compiled(LLAMA, torch.float32, "inductor")
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def eager_and_compiled(
    changes: dict[str, Any], dtype: torch.dtype, backend: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients, without and with torch.compile."""
    model = small_model(**changes, dropout=0.1, attention_dropout=0.1)
    block = block_of(model, dtype)
    _, starts_BT, keys_B, *_ = random_inputs(model)
    shape = (*starts_BT.shape, model.hidden_size)
    x_BTH = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    inputs = (x_BTH.requires_grad_(), starts_BT, keys_B)
    leaves = [x_BTH, *block.parameters()]
    expected = run(block, inputs, leaves)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    return expected, run(compiled, inputs, leaves)
