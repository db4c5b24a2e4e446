"""Whose gradient was not finite; over several ranks see tests/parallel/test_layouts.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roots.parallel.mesh import Mesh
from roots.parallel.shard import attach, replicated
from roots.training.engine.overflow import IN_THE_SUM, GradientWatch


def model_of(mesh: Mesh) -> nn.Module:
    """Three parameters that are told apart from the outside."""
    module = nn.Module()
    for name in ("first", "second", "third"):
        parameter = nn.Parameter(torch.ones(5))
        attach(parameter, replicated(f"model.{name}", (5,)), mesh.tensor)
        setattr(module, name, parameter)
    return module


def backward(module: nn.Module, factors: dict[str, float]) -> None:
    total = sum(getattr(module, name).sum() * factor for name, factor in factors.items())
    assert isinstance(total, torch.Tensor)
    total.backward()


@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_first_parameter_of_the_model_is_named(implementation: str) -> None:
    mesh = Mesh.single()
    module = model_of(mesh)
    watch = GradientWatch(module, implementation)
    watch.start_step()
    backward(module, {"first": 1.0, "second": 1.0, "third": torch.nan})
    assert watch.culprit(mesh) == "model.third on rank 0"
    # A later micro-batch of the same step.
    backward(module, {"first": 1.0, "second": torch.inf})
    assert watch.culprit(mesh) == "model.second on rank 0"


def test_a_step_forgets_the_one_before() -> None:
    mesh = Mesh.single()
    module = model_of(mesh)
    watch = GradientWatch(module, "auto")
    backward(module, {"first": torch.inf})
    module.zero_grad()
    watch.start_step()
    assert watch.culprit(mesh) == IN_THE_SUM
    backward(module, {"first": 1.0, "second": 2.0})
    assert watch.culprit(mesh) == IN_THE_SUM
