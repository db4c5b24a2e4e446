"""The gradient norm that ROOTS takes itself; over several ranks see tests/parallel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roots.parallel.mesh import Mesh
from roots.parallel.shard import attach, replicated
from roots.training.engine.gradients import clip_gradients_, global_gradient_norm


def parameter_with(gradient: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty_like(gradient))
    attach(parameter, replicated("model.weight", tuple(gradient.shape)), Mesh.single().tensor)
    parameter.grad = gradient
    return parameter


def test_norm_of_many_elements_is_exact() -> None:
    gradient = torch.randn(24_000, 512, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.vector_norm(gradient.double()).item()
    norm = global_gradient_norm([parameter_with(gradient)], Mesh.single())
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(exact, rel=1e-6)


def test_norm_is_over_all_that_have_a_gradient() -> None:
    three, four = parameter_with(torch.tensor([3.0])), parameter_with(torch.tensor([[4.0]]))
    none = nn.Parameter(torch.ones(7))
    assert global_gradient_norm([three, none, four], Mesh.single()).item() == 5.0
    assert global_gradient_norm([none], Mesh.single()).item() == 0.0


@pytest.mark.parametrize(("largest", "factor"), [(0.0, 1.0), (10.0, 1.0), (2.5, 0.5)])
def test_clipping_scales_to_the_largest_norm(largest: float, factor: float) -> None:
    parameters = [parameter_with(torch.tensor([3.0])), parameter_with(torch.tensor([4.0]))]
    clip_gradients_(parameters, torch.tensor(5.0), largest)
    gradients = torch.stack([each.grad for each in parameters if each.grad is not None])
    torch.testing.assert_close(gradients, factor * torch.tensor([[3.0], [4.0]]))
