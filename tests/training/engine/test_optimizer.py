"""Whose AdamW runs: chosen by constructing it, refused with its reason, and equal to torch's."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import pytest
import torch

from roots.config import RunConfig, parse_config
from roots.device import Device
from roots.errors import RootsError
from roots.parallel.mesh import Axis
from roots.parallel.shard import attach_expert, replicated
from roots.training.engine.optimizer import choose_optimizer, parameter_groups

CPU = Device("cpu", 0)


def config_of(implementation: str, **parallel: object) -> RunConfig:
    tree = {"optimizer": {"implementation": implementation}, "parallel": parallel}
    return parse_config(tree)


def test_auto_on_a_cpu_is_torch_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("roots").propagate = True
    with caplog.at_level(logging.INFO, logger="roots"):
        factory = choose_optimizer(config_of("auto"), CPU)
    optimizer = factory([{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    assert type(optimizer) is torch.optim.AdamW
    assert "optimizer: torch, torch's fused AdamW" in caplog.text


def test_apex_that_is_not_nvidias_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package called apex on PyPI imports well and has no optimizers."""
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    with pytest.raises(RootsError) as caught:
        choose_optimizer(config_of("apex"), CPU)
    (line,) = caught.value.lines
    assert line == (
        "optimizer.implementation='apex': is not usable here (apex: ModuleNotFoundError: No module "
        "named 'apex.optimizers'; 'apex' is not a package); install or build it, or set "
        "optimizer.implementation=auto"
    )


def test_half_built_apex_is_refused_with_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's without its CUDA extension imports, and raises when it is constructed."""

    def fused_adam(*_: object, **__: object) -> None:
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

    module = types.ModuleType("apex.optimizers")
    module.FusedAdam = fused_adam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    with pytest.raises(RootsError, match="requires cuda extensions"):
        choose_optimizer(config_of("apex"), CPU)


def test_adam_of_the_host_needs_a_compiler_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in an image without one; torch and DeepSpeed blame something else."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RootsError) as caught:
        choose_optimizer(config_of("deepspeed", offload_optimizer="cpu"), CPU)
    (line,) = caught.value.lines
    assert line == (
        "optimizer.implementation='deepspeed': is not usable here (deepspeed: BuildError: there is "
        "no C++ compiler (c++) on PATH: run `apt-get install g++`, or set CXX.); install or build "
        "it, or set optimizer.implementation=auto"
    )
    assert capfd.readouterr().err == ""


def test_working_apex_is_used_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with apex's constructor: the real one needs a GPU."""

    class FusedAdam(torch.optim.SGD):
        def __init__(self, groups: object, adam_w_mode: bool, **_: object) -> None:
            assert adam_w_mode
            super().__init__(groups, lr=1.0)  # type: ignore[arg-type]

    module = types.ModuleType("apex.optimizers")
    module.FusedAdam = FusedAdam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    factory = choose_optimizer(config_of("apex"), CPU)
    assert isinstance(factory([{"params": [torch.nn.Parameter(torch.zeros(1))]}]), FusedAdam)


def test_groups_decay_matrices_alone_and_leave_out_empty_ones() -> None:
    config = config_of("auto")
    matrix = torch.nn.Parameter(torch.zeros(2, 2))
    bias = torch.nn.Parameter(torch.zeros(2))
    groups = parameter_groups(config, [matrix], [bias])
    assert [group["weight_decay"] for group in groups] == [config.optimizer.weight_decay, 0.0]
    assert len(parameter_groups(config, [matrix], [])) == 1


def test_experts_that_are_spread_out_decay_in_a_group_of_their_own() -> None:
    config = parse_config({"parallel": {"expert": 2}, "model": {"moe": {"num_experts": 4}}})
    matrix, expert = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    lone, spread = Axis("tensor", 1, 0, (0,)), Axis("expert", 2, 0, (0, 1))
    attach_expert(expert, replicated("layers.0.mlp.experts.0.up.weight", (2, 2)), lone, spread)
    groups = parameter_groups(config, [matrix, expert], [])
    decay = config.optimizer.weight_decay
    assert decay > 0
    assert groups == [
        {"params": [matrix], "weight_decay": decay},
        {"params": [expert], "weight_decay": decay, "moe": True, "name": "ep_size_2"},
    ]


def test_deepspeeds_adam_of_the_host_takes_the_steps_of_torchs(tmp_path: Path) -> None:
    """Compiles DeepSpeed's op on the first call on a machine."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(300, generator=generator)
    gradients = [torch.randn(300, generator=generator) for _ in range(3)]
    results = []
    for implementation in ("torch", "deepspeed"):
        parameter = torch.nn.Parameter(start.clone())
        factory = choose_optimizer(config_of(implementation), CPU)
        optimizer = factory([{"params": [parameter], "weight_decay": 0.1}])
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)
